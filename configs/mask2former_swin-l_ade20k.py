"""Swin-L on ADE20K: 56.1 mIoU published by the authors; 16 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; single scale, 57.3 with multi-scale and flip; crop 640, 16
images per iteration (8 GPUs with 2 images here). MMSegmentation publishes 56.01 for its own
recipe, mask2former_swin-l_ade20k_mmseg.py.
"""

_base_ = [
    './_base_/models/mask2former_swin-l.py',
    './_base_/datasets/ade20k_640x640.py',
    './_base_/schedules/adamw_8xb2-160k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=150),
)
