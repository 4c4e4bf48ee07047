"""Mapillary Vistas semantic, crop 1024, 300k iterations: the official recipe (arXiv:2112.01527)."""

_base_ = [
    '../runtime.py',
    '../datasets/mapillary-1024.py',
    '../tasks/semantic.py',
    '../schedules/adamw_8xb2-300k.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size, seg_pad_val=65, test_cfg=dict(size_divisor=32)),
    decode_head=dict(num_classes=65, ignore_index=65),
)
