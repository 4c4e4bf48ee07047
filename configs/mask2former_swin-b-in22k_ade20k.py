"""Swin-B IN-22k on ADE20K: 53.9 mIoU published by the authors; 8 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; single scale, 55.1 with multi-scale and flip; crop 640, 16
images per iteration. MMSegmentation publishes 53.90 for its own recipe,
mask2former_swin-b-in22k_ade20k_mmseg.py.
"""

_base_ = [
    './_base_/models/mask2former_swin-b-in22k.py',
    './_base_/datasets/ade20k_640x640.py',
    './_base_/schedules/adamw_8xb2-160k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=150),
)
