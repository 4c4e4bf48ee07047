"""Swin-L on ADE20K panoptic: 48.1 PQ published by the authors; 16 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; 34.2 AP of things, 54.5 mIoU; 200 queries, crop 640, 16
images per iteration.
"""

_base_ = [
    './_base_/recipes/ade20k-panoptic.py',
    './_base_/backbones/swin-l-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels, num_queries=200),
)
