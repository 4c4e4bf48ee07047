"""Swin-L on ADE20K: 56.01 mIoU published by MMSegmentation; 8 A100, 160k iterations.

MMSegmentation 1.2.2, configs/mask2former; single scale, crop 640, 16 images per iteration. The
authors publish 56.1 for the official recipe, mask2former_swin-l_ade20k.py.
"""

_base_ = [
    './_base_/recipes/ade20k-640_mmseg.py',
    './_base_/backbones/swin-l-in22k.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
