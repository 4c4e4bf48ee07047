"""Mask2Former for MMSegmentation and MMDetection. Importing this package loads no framework."""

from typing import Any

__version__ = '0.1.0'


def accelerate(model: Any, points: str = 'shared') -> Any:
    """Let a built Mask2Former of mmseg or mmdet compute with our parts, in place.

    Its modules, parameters and their names stay, and with them an optimizer that holds them and
    its checkpoints. Its results stay up to rounding. ``mmseg_m2f.adapters.acceleration.restore``
    takes it back.

    Args:
        model: a built model with a stock Mask2Former head, also inside of a wrapper such as DDP.
        points: how the matcher draws points: ``'shared'`` by all predictions, or
            ``'per_prediction'`` as the stock models do.

    Returns:
        ``model`` itself.

    Raises:
        CannotAccelerateError: a part of the model cannot be swapped; the message names it, and the
            model is as it was.
    """
    from mmseg_m2f.adapters.acceleration import accelerate as implementation

    implementation.accelerate(model, points)
    return model


def prepare_inference(
    model: Any,
    *,
    dtype: Any = None,
    channels_last: bool = False,
    compile: bool = False,  # noqa: A002 - torch's word
    fuse_norms: bool = False,
) -> Any:
    """Make a built segmentor of mmseg or detector of mmdet predict faster, in place.

    The model may be ours or a stock one; `accelerate` goes first. Every setting is off by default:
    each has a price that only the user can weigh.

    Args:
        model: with its weights loaded, in evaluation mode, also inside of a wrapper such as DDP.
        dtype: ``torch.bfloat16``, ``torch.float16`` (not on a CPU) or its name: ``predict`` runs
            under autocast, with other numbers. Our pixel decoder stays in float32 unless it is
            built with ``mixed_precision=True``.
        channels_last: put 4-d weights in channels-last order. Equal up to rounding.
        compile: use ``torch.compile`` for backbone, neck and head, not for the post-processing.
            Equal up to rounding; the first images take minutes.
        fuse_norms: fuse the batch norms of a ResNet or ResNeXt into its convolutions, by mmcv.
            Equal up to rounding. The state dict loses the norms, and the model is not to be
            trained again.

    Returns:
        ``model`` itself.

    Raises:
        CannotPrepareError: a ``ValueError`` that says why; the model is as it was.
    """
    from mmseg_m2f.adapters.inference import prepare

    prepare(model, dtype, channels_last, compile, fuse_norms)
    return model
