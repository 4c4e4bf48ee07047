"""Swin-T on ADE20K: 48.66 mIoU published by MMSegmentation; 8 A100, 160k iterations.

MMSegmentation 1.2.2, configs/mask2former; single scale, crop 512, 16 images per iteration. The
authors publish 47.7 for the official recipe, mask2former_swin-t_ade20k.py.
"""

_base_ = [
    './_base_/recipes/ade20k-512_mmseg.py',
    './_base_/backbones/swin-t.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
