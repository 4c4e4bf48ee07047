"""Mask2Former for MMSegmentation and MMDetection. Importing this package loads no framework."""

from typing import Any

__version__ = '0.1.0'


def accelerate(model: Any, points: str = 'shared') -> Any:
    """Let a built Mask2Former of mmseg, mmdet or Hugging Face compute with our parts, in place.

    Its modules, parameters and their names stay what they are, and so do an optimiser that holds
    them, its checkpoints, and what it gives, up to rounding.

    Args:
        model: built, trained or loaded; also inside of a wrapper such as DDP.
        points: of the matching, ``'shared'`` or ``'per_prediction'`` as the stock models draw them.

    Returns:
        ``model`` itself.

    Raises:
        CannotAccelerateError: what of the model cannot be swapped; the model is as it was.
    """
    from mmseg_m2f.adapters.acceleration import huggingface

    inner = getattr(model, 'module', model)
    if huggingface.is_huggingface(inner):
        huggingface.accelerate_huggingface(inner, points)
    else:
        from mmseg_m2f.adapters.acceleration import accelerate as openmmlab

        openmmlab.accelerate_openmmlab(inner, points)
    return model


def prepare_inference(
    model: Any,
    *,
    channels_last: bool = True,
    fuse_norms: bool = True,
    dtype: Any = None,
    compile: bool = False,  # noqa: A002 - as torch calls it
    cast_weights: bool = False,
) -> Any:
    """Make a built segmentor of mmseg or detector of mmdet predict faster, in place.

    For a model with its weights loaded, in evaluation mode, that is not to be trained on: fused
    norms leave neither their statistics nor their names in the state dict. Stock models, too;
    ``accelerate`` goes first.

    Args:
        model: ours or any other of the two packages; also inside of a wrapper such as DDP.
        channels_last: brings the 4-d weights into channels-last order. The same up to rounding.
        fuse_norms: fuses the backbone's batch norms into the convolutions before them, by mmcv.
            The same up to rounding, which is tried on a copy first.
        dtype: ``torch.bfloat16``, ``torch.float16`` (not on a CPU) or its name: ``predict`` runs
            under autocast. Other numbers. Our pixel decoder stays in float32 unless it is built
            with ``mixed_precision=True``.
        compile: ``torch.compile`` on backbone, neck and head, not on the post-processing. It takes
            minutes at the first images.
        cast_weights: brings the weights, too, into ``dtype``, as the autocast does at every
            image: of convolutions, linear layers and attention, in the backbone and in what of
            our head computes in ``dtype``. The same numbers in less memory and time; only
            ``predict`` works from then on, and there is no way back. Tried on a copy first.

    Returns:
        ``model`` itself.

    Raises:
        CannotPrepareError: a ``ValueError``: what cannot be prepared; the model is as it was.
    """
    from mmseg_m2f.adapters.inference import prepare as openmmlab

    openmmlab.prepare_openmmlab(
        model,
        channels_last=channels_last,
        fuse_norms=fuse_norms,
        dtype=dtype,
        compile=compile,
        cast_weights=cast_weights,
    )
    return model
