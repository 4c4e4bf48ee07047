"""Swin-L on Cityscapes: 83.3 mIoU published by the authors; 16 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; single scale, 84.3 with multi-scale and flip; crop 512x1024,
16 images per iteration (8 GPUs with 2 images here). MMSegmentation publishes 83.65 for its own
recipe, mask2former_swin-l_cityscapes_mmseg.py.
"""

_base_ = [
    './_base_/models/mask2former_swin-l.py',
    './_base_/datasets/cityscapes_512x1024.py',
    './_base_/schedules/adamw_8xb2-90k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=19),
)
