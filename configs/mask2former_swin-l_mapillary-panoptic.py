"""Swin-L on Mapillary Vistas panoptic: 45.5 PQ published by the authors; 16 V100, 300k iterations.

arXiv:2112.01527 and its model zoo; 60.8 mIoU; 200 queries, crop 1024, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/mapillary-panoptic.py',
    './_base_/backbones/swin-l-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels, num_queries=200),
)
