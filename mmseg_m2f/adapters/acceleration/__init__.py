"""Our computation inside of built models of others, which keep their modules and parameters.

A *twin* is one of our modules that computes with the parameters of a stock module: the very same
``nn.Parameter`` objects. The stock model is left as it stands, down to its state dict; only the
methods through which others call it lead to the twin. This package needs torch alone; the models of
OpenMMLab are the affair of ``adapters``.
"""

from mmseg_m2f.adapters.acceleration.swap import is_accelerated, replace_methods, restore
from mmseg_m2f.adapters.acceleration.twin import CannotAccelerateError, Twin

__all__ = ['CannotAccelerateError', 'Twin', 'is_accelerated', 'replace_methods', 'restore']
