"""Our parts behind the methods of built Mask2Formers of MMSegmentation and MMDetection.

The stock model keeps its modules, parameters and state dict. A *twin*, our head on the very same
``nn.Parameter`` objects, computes in place of the stock head.
"""

from mmseg_m2f.adapters.acceleration.accelerate import (
    AccelerateHook,
    CannotAccelerateError,
    is_accelerated,
    restore,
)

__all__ = ['AccelerateHook', 'CannotAccelerateError', 'is_accelerated', 'restore']
