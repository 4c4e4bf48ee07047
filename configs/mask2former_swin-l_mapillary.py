"""Swin-L on Mapillary Vistas: 63.2 mIoU published by the authors; 16 V100, 300k iterations.

arXiv:2112.01527 and its model zoo; single scale, 64.7 with multi-scale and flip; crop 1024, 16
images per iteration.
"""

_base_ = [
    './_base_/recipes/mapillary.py',
    './_base_/backbones/swin-l-in22k.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
