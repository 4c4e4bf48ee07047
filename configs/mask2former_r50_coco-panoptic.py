"""R50 on COCO panoptic: 51.9 PQ published by the authors; 8 V100, 368,750 iterations.

arXiv:2112.01527 and its model zoo; 41.7 AP of things, 61.7 mIoU; 50 epochs, large-scale jitter to
1024, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/coco-panoptic-50e.py',
    './_base_/backbones/r50_frozenbn.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
