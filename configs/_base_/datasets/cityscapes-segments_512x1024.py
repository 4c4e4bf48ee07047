# Images of Cityscapes for instance and panoptic models. They are never smaller than the crop, so
# that no padding is needed.
_base_ = './loaders.py'

short_side = 1024
crop_size = (512, 1024)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg_m2f.LoadSegments'),
    dict(
        type='mmseg_m2f.ResizeAndCrop',
        resize=dict(
            type='mmseg_m2f.ResizeShortestEdge',
            scale=[short_side * i // 10 for i in range(5, 21)],
            max_size=4 * short_side,
        ),
        crop=dict(type='mmseg_m2f.RandomCrop', crop_size=crop_size),
    ),
    dict(type='mmseg_m2f.PhotoMetricDistortion'),
    dict(type='mmseg_m2f.RandomFlip', prob=0.5),
    dict(type='mmseg_m2f.PackSegments'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2 * short_side, short_side), keep_ratio=True, backend='pillow'),
    dict(type='mmseg_m2f.PackSegments'),
]
