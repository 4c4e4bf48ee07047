"""ADE20K semantic, crop 512, 160k iterations: MMSegmentation's recipe (version 1.2.2)."""

_base_ = [
    '../runtime.py',
    '../datasets/ade20k-512_mmseg.py',
    '../tasks/semantic.py',
    '../schedules/adamw_8xb2-160k_mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size, test_cfg=dict(size_divisor=32)),
    decode_head=dict(num_classes=150),
)
