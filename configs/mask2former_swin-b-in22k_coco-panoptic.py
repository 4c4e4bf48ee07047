"""Swin-B IN-22k on COCO panoptic: 56.4 PQ published by the authors; 8 V100, 368,750 iterations.

arXiv:2112.01527 and its model zoo; 46.3 AP of things, 67.1 mIoU; 50 epochs, large-scale jitter to
1024, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/coco-panoptic-50e.py',
    './_base_/backbones/swin-b-in22k_mmdet.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
