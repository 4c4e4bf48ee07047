"""Swin-B IN-22k on Cityscapes: 83.3 mIoU published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; single scale, 84.5 with multi-scale and flip; crop 512x1024,
16 images per iteration. MMSegmentation publishes 83.52 for its own recipe,
mask2former_swin-b-in22k_cityscapes_mmseg.py.
"""

_base_ = [
    './_base_/recipes/cityscapes.py',
    './_base_/backbones/swin-b-in22k.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
