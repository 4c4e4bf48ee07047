# 36 photos of facades for training and 12 for validation, 384 x 384, in this repository.
crop_size = (192, 192)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='mmseg_m2f.ResizeAndCrop',
        resize=dict(
            type='mmseg_m2f.ResizeShortestEdge',
            scale=[192, 224, 256, 288, 320, 352, 384],
            max_size=1024,
        ),
        crop=dict(type='mmseg_m2f.RandomCrop', crop_size=crop_size),
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 256), keep_ratio=True, backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(size, size), keep_ratio=True, backend='pillow')
                for size in (192, 256, 320)
            ],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='mmseg_m2f.LoadAnnotationsIfAny')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(
    batch_size=4,
    # The images are small: loading them in other processes would cost more time than it saves.
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root='data/tiny/facade',
        metainfo=dict(
            classes=[
                'window',
                'balcony-fence',
                'car',
                'shop',
                'traffic-infrastructure',
                'facade',
                'street',
                'vegetation',
                'fence',
                'non-building-infrastructure',
                'background',
            ],
            palette=[
                [60, 120, 255],
                [255, 128, 0],
                [0, 0, 142],
                [255, 0, 0],
                [0, 220, 220],
                [200, 200, 80],
                [128, 64, 128],
                [0, 160, 0],
                [128, 64, 0],
                [255, 0, 255],
                [70, 70, 70],
            ],
        ),
        data_prefix=dict(img_path='img/train', seg_map_path='labelmap/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root='data/tiny/facade',
        metainfo=dict(
            classes=[
                'window',
                'balcony-fence',
                'car',
                'shop',
                'traffic-infrastructure',
                'facade',
                'street',
                'vegetation',
                'fence',
                'non-building-infrastructure',
                'background',
            ],
            palette=[
                [60, 120, 255],
                [255, 128, 0],
                [0, 0, 142],
                [255, 0, 0],
                [0, 220, 220],
                [200, 200, 80],
                [128, 64, 128],
                [0, 160, 0],
                [128, 64, 0],
                [255, 0, 255],
                [70, 70, 70],
            ],
        ),
        data_prefix=dict(img_path='img/val', seg_map_path='labelmap/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
