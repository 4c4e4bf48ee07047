"""Swin-B IN-22k on Cityscapes instances: 42.0 AP published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 68.8 AP50; crop 512x1024, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/cityscapes-instance.py',
    './_base_/backbones/swin-b-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
