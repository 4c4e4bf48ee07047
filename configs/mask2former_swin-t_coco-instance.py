"""Swin-T on COCO instances: 45.0 AP published by the authors; 8 V100, 368,750 iterations.

arXiv:2112.01527 and its model zoo; 31.8 boundary AP; 50 epochs, large-scale jitter to 1024, 16
images per iteration.
"""

_base_ = [
    './_base_/recipes/coco-instance-50e.py',
    './_base_/backbones/swin-t_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
