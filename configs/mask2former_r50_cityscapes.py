"""R50 on Cityscapes: 79.4 mIoU published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; single scale, 82.2 with multi-scale and flip; crop 512x1024,
16 images per iteration. MMSegmentation publishes 80.44 for its own recipe,
mask2former_r50_cityscapes_mmseg.py.
"""

_base_ = [
    './_base_/recipes/cityscapes.py',
    './_base_/backbones/r50_syncbn.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
