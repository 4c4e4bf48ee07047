"""R101 on ADE20K: 47.8 mIoU published by the authors; 8 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; single scale, 50.1 with multi-scale and flip; crop 512, 16
images per iteration. MMSegmentation publishes 48.60 for its own recipe,
mask2former_r101_ade20k_mmseg.py.
"""

_base_ = [
    './_base_/recipes/ade20k-512.py',
    './_base_/backbones/r101_syncbn.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    decode_head=dict(in_channels=_base_.preset_in_channels),
)
