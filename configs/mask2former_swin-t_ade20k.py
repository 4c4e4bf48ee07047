"""Swin-T on ADE20K: 47.7 mIoU published by the authors; 8 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; single scale, 49.6 with multi-scale and flip; crop 512, 16
images per iteration. MMSegmentation publishes 48.66 for its own recipe,
mask2former_swin-t_ade20k_mmseg.py.
"""

_base_ = [
    './_base_/models/mask2former_swin-t.py',
    './_base_/datasets/ade20k_512x512.py',
    './_base_/schedules/adamw_8xb2-160k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=150),
)
