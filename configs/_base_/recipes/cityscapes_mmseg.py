"""Cityscapes semantic, crop 512x1024, 90k iterations: MMSegmentation's recipe (version 1.2.2)."""

_base_ = [
    '../runtime.py',
    '../datasets/cityscapes-512x1024_mmseg.py',
    '../tasks/semantic.py',
    '../schedules/adamw_8xb2-90k_mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size, test_cfg=dict(size_divisor=32)),
    decode_head=dict(num_classes=19),
)
