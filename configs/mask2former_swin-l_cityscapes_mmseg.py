"""Swin-L on Cityscapes: 83.65 mIoU published by MMSegmentation; 8 A100, 90k iterations.

MMSegmentation 1.2.2, configs/mask2former; single scale, crop 512x1024, 16 images per iteration.
The authors publish 83.3 for the official recipe, mask2former_swin-l_cityscapes.py.
"""

_base_ = [
    './_base_/recipes/cityscapes_mmseg.py',
    './_base_/backbones/swin-l-in22k.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
