"""Swin-B IN-1k on ADE20K: 52.4 mIoU published by the authors; 8 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; single scale, 53.7 with multi-scale and flip; crop 640, 16
images per iteration. MMSegmentation publishes 52.44 for its own recipe,
mask2former_swin-b-in1k_ade20k_mmseg.py.
"""

_base_ = [
    './_base_/recipes/ade20k-640.py',
    './_base_/backbones/swin-b-in1k.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
