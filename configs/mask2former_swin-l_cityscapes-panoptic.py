"""Swin-L on Cityscapes panoptic: 66.6 PQ published by the authors; 16 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 43.6 AP of things, 82.9 mIoU; 200 queries, crop 512x1024, 16
images per iteration.
"""

_base_ = [
    './_base_/recipes/cityscapes-panoptic.py',
    './_base_/backbones/swin-l-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels, num_queries=200),
)
