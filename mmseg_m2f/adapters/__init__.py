"""The bridge to OpenMMLab: the only package here that imports mmengine, mmcv, mmseg or mmdet.

Importing it registers every part in the scope ``mmseg_m2f``; MMEngine does so by itself when a
config names ``mmseg_m2f.X``.
"""

from mmseg_m2f.adapters import parts, semantic
from mmseg_m2f.adapters.kernels import offer_mmcv_operator

offer_mmcv_operator()

__all__ = ['parts', 'semantic']
