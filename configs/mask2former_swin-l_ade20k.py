"""Swin-L on ADE20K: 56.1 mIoU published by the authors; 16 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; single scale, 57.3 with multi-scale and flip; crop 640, 16
images per iteration. MMSegmentation publishes 56.01 for its own recipe,
mask2former_swin-l_ade20k_mmseg.py.
"""

_base_ = [
    './_base_/recipes/ade20k-640.py',
    './_base_/backbones/swin-l-in22k.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
