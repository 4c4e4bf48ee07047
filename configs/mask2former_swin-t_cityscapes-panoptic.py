"""Swin-T on Cityscapes panoptic: 63.9 PQ published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 39.1 AP of things, 80.5 mIoU; crop 512x1024, 16 images per
iteration.
"""

_base_ = [
    './_base_/recipes/cityscapes-panoptic.py',
    './_base_/backbones/swin-t_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
