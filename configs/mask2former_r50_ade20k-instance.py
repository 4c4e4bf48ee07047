"""R50 on ADE20K instances: 26.4 AP published by the authors; 8 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; crop 640, 16 images per iteration.
"""

_base_ = [
    './_base_/recipes/ade20k-instance.py',
    './_base_/backbones/r50_frozenbn.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    panoptic_head=dict(in_channels=_base_.preset_in_channels),
)
