"""Swin-L on ADE20K instances: 34.9 AP published by the authors; 16 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; 200 queries, crop 640, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/ade20k-instance.py',
    './_base_/backbones/swin-l-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels, num_queries=200),
)
