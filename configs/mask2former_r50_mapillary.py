"""R50 on Mapillary Vistas: 57.4 mIoU published by the authors; 8 V100, 300k iterations.

arXiv:2112.01527 and its model zoo; single scale, 59.0 with multi-scale and flip; crop 1024, 16
images per iteration.
"""

_base_ = [
    './_base_/recipes/mapillary.py',
    './_base_/backbones/r50_frozenbn.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
