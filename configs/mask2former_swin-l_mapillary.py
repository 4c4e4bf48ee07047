"""Swin-L on Mapillary Vistas: 63.2 mIoU published by the authors; 16 V100, 300k iterations.

arXiv:2112.01527 and its model zoo; single scale, 64.7 with multi-scale and flip; crop 1024, 16
images per iteration (8 GPUs with 2 images here).
"""

_base_ = [
    './_base_/models/mask2former_swin-l.py',
    './_base_/datasets/mapillary_1024x1024.py',
    './_base_/schedules/adamw_8xb2-300k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size, seg_pad_val=65),
    decode_head=dict(num_classes=65, ignore_index=65),
)
