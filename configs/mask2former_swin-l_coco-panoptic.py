"""Swin-L on COCO panoptic: 57.8 PQ published by the authors; 16 V100, 737,500 iterations.

arXiv:2112.01527 and its model zoo; 48.6 AP of things, 67.4 mIoU; 200 queries, 100 epochs,
large-scale jitter to 1024, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/coco-panoptic-100e.py',
    './_base_/backbones/swin-l-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels, num_queries=200),
)
