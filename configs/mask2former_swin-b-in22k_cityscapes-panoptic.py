"""Swin-B IN-22k on Cityscapes panoptic: 66.1 PQ published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 42.8 AP of things, 82.7 mIoU; crop 512x1024, 16 images per
iteration.
"""

_base_ = [
    './_base_/recipes/cityscapes-panoptic.py',
    './_base_/backbones/swin-b-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
