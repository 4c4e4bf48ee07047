"""Swin-B IN-22k on ADE20K: 53.90 mIoU published by MMSegmentation; 8 A100, 160k iterations.

MMSegmentation 1.2.2, configs/mask2former; single scale, crop 640, 16 images per iteration. The
authors publish 53.9 for the official recipe, mask2former_swin-b-in22k_ade20k.py.
"""

_base_ = [
    './_base_/models/mask2former_swin-b-in22k.py',
    './_base_/datasets/ade20k_640x640_mmseg.py',
    './_base_/schedules/adamw_8xb2-160k_mmseg.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size, test_cfg=None),
    decode_head=dict(num_classes=150),
)
