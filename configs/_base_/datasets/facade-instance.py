# The things of the facade photos in COCO's instance format. In places they overlap, because the
# polygons are stored whole.
crop_size = (192, 192)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg_m2f.LoadSegments'),
    dict(
        type='mmseg_m2f.ResizeAndCrop',
        resize=dict(
            type='mmseg_m2f.ResizeShortestEdge',
            scale=[192, 224, 256, 288, 320, 352, 384],
            max_size=1024,
        ),
        crop=dict(type='mmseg_m2f.RandomCrop', crop_size=crop_size),
    ),
    dict(type='mmseg_m2f.RandomFlip', prob=0.5),
    # A few minutes of training are too short for the many tiny windows. Only instances of at least
    # 400 pixels are kept.
    dict(type='mmseg_m2f.PackSegments', keep_empty=False, min_area=400),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), keep_ratio=True, backend='pillow'),
    dict(type='mmseg_m2f.PackSegments'),
]
train_dataloader = dict(
    batch_size=4,
    # The images are small: loading them in other processes would cost more time than it saves.
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmseg_m2f.InstanceDataset',
        data_root='data/tiny/facade',
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='img/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmseg_m2f.InstanceDataset',
        data_root='data/tiny/facade',
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='img/val'),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='mmseg_m2f.InstanceMetric',
    ann_file='data/tiny/facade/annotations/instances_val.json',
)
test_evaluator = val_evaluator
