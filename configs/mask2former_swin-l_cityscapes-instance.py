"""Swin-L on Cityscapes instances: 43.7 AP published by the authors; 16 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 71.4 AP50; 200 queries, crop 512x1024, 16 images per
iteration.
"""

_base_ = [
    './_base_/recipes/cityscapes-instance.py',
    './_base_/backbones/swin-l-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels, num_queries=200),
)
