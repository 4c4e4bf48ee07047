_base_ = './ade20k.py'

short_side = 640
crop_size = (640, 640)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomChoiceResize',
        scales=[short_side * i // 10 for i in range(5, 21)],
        resize_type='ResizeShortestEdge',
        max_size=4 * short_side,
    ),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(4 * short_side, short_side), keep_ratio=True),
    # Loaded after the resize, so that the label map keeps the original size. The prediction is
    # resized to it.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
# Test-time augmentation as in the official code of the paper: six short sides, each with and
# without a flip. The views are made from the image that was already resized for the test.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(4 * short_side, short_side), keep_ratio=True),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(7 * short_side, short_side * i // 4), keep_ratio=True)
                for i in range(2, 8)
            ],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='mmseg_m2f.LoadAnnotationsIfAny')],
            [dict(type='PackSegInputs')],
        ],
    ),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
