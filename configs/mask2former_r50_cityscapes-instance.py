"""R50 on Cityscapes instances: 37.4 AP published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 61.9 AP50; crop 512x1024, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/cityscapes-instance.py',
    './_base_/backbones/r50_syncbn.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
