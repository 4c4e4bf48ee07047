"""R50 on Mapillary Vistas panoptic: 36.3 PQ published by the authors; 8 V100, 300k iterations.

arXiv:2112.01527 and its model zoo; 50.7 mIoU; crop 1024, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/mapillary-panoptic.py',
    './_base_/backbones/r50_frozenbn.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
