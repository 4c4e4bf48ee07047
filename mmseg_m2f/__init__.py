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
    from mmseg_m2f.acceleration import huggingface

    inner = getattr(model, 'module', model)
    if huggingface.is_huggingface(inner):
        huggingface.accelerate_huggingface(inner, points)
    else:
        from mmseg_m2f.adapters import accelerate as openmmlab

        openmmlab.accelerate_openmmlab(inner, points)
    return model
