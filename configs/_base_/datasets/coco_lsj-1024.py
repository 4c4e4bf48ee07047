# Large-scale jitter: each image is resized to fit into 0.1 to 2 times the square of 1024 pixels,
# then cropped or padded to that square.
_base_ = './loaders.py'

crop_size = (1024, 1024)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg_m2f.LoadSegments'),
    dict(type='mmseg_m2f.RandomFlip', prob=0.5),
    dict(
        type='mmseg_m2f.ResizeAndCrop',
        resize=dict(
            type='mmseg_m2f.ResizeScale', min_scale=0.1, max_scale=2.0, target_size=crop_size
        ),
        # One draw for both offsets, as in the official code.
        crop=dict(
            type='mmseg_m2f.FixedSizeCrop', crop_size=crop_size, pad_value=128, offsets='shared'
        ),
    ),
    dict(type='mmseg_m2f.PackSegments'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True, backend='pillow'),
    dict(type='mmseg_m2f.PackSegments'),
]
