"""ADE20K semantic, crop 640, 160k iterations: MMSegmentation's recipe (version 1.2.2).

Its test images are not padded to a multiple of 32.
"""

_base_ = [
    '../runtime.py',
    '../datasets/ade20k-640_mmseg.py',
    '../tasks/semantic.py',
    '../schedules/adamw_8xb2-160k_mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=150),
)
