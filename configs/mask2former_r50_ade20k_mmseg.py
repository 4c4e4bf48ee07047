"""R50 on ADE20K: 47.87 mIoU published by MMSegmentation; 8 A100, 160k iterations.

MMSegmentation 1.2.2, configs/mask2former; single scale, crop 512, 16 images per iteration. The
authors publish 47.2 for the official recipe, mask2former_r50_ade20k.py.
"""

_base_ = [
    './_base_/models/mask2former_r50-mmseg.py',
    './_base_/datasets/ade20k_512x512_mmseg.py',
    './_base_/schedules/adamw_8xb2-160k_mmseg.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=150),
)
