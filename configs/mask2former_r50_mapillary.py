"""R50 on Mapillary Vistas: 57.4 mIoU published by the authors; 8 V100, 300k iterations.

arXiv:2112.01527 and its model zoo; single scale, 59.0 with multi-scale and flip; crop 1024, 16
images per iteration.
"""

_base_ = [
    './_base_/models/mask2former_r50-frozenbn.py',
    './_base_/datasets/mapillary_1024x1024.py',
    './_base_/schedules/adamw_8xb2-300k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size, seg_pad_val=65),
    decode_head=dict(num_classes=65, ignore_index=65),
)
