"""Swin-B IN-22k on Cityscapes: 83.52 mIoU published by MMSegmentation; 8 A100, 90k iterations.

MMSegmentation 1.2.2, configs/mask2former; single scale, crop 512x1024, 16 images per iteration.
The authors publish 83.3 for the official recipe, mask2former_swin-b-in22k_cityscapes.py.
"""

_base_ = [
    './_base_/models/mask2former_swin-b-in22k.py',
    './_base_/datasets/cityscapes_512x1024_mmseg.py',
    './_base_/schedules/adamw_8xb2-90k_mmseg.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=19),
)
