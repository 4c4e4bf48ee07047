"""Swin-S on Cityscapes panoptic: 64.8 PQ published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 40.7 AP of things, 81.8 mIoU; crop 512x1024, 16 images per
iteration.
"""

_base_ = [
    './_base_/recipes/cityscapes-panoptic.py',
    './_base_/backbones/swin-s_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
