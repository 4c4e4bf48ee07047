"""R50 on ADE20K panoptic: 39.7 PQ published by the authors; 8 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; 26.5 AP of things, 46.1 mIoU; crop 640, 16 images per
iteration.
"""

_base_ = [
    './_base_/recipes/ade20k-panoptic.py',
    './_base_/backbones/r50_frozenbn.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
