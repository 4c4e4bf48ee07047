"""Swin-S on ADE20K: 51.3 mIoU published by the authors; 8 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; single scale, 52.4 with multi-scale and flip; crop 512, 16
images per iteration. MMSegmentation publishes 51.24 for its own recipe,
mask2former_swin-s_ade20k_mmseg.py.
"""

_base_ = [
    './_base_/recipes/ade20k-512.py',
    './_base_/backbones/swin-s.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
