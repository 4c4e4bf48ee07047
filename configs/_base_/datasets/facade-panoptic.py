# 36 photos of facades for training and 12 for validation, 384 x 384, in this repository:
# 5 thing classes, 6 stuff classes, about 40 segments per photo. The classes are read from the JSON.
crop_size = (192, 192)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg_m2f.LoadSegments'),
    dict(
        type='mmseg_m2f.ResizeAndCrop',
        resize=dict(
            type='mmseg_m2f.ResizeShortestEdge',
            scale=[192, 224, 256, 288, 320, 384, 448, 512],
            max_size=1024,
        ),
        crop=dict(type='mmseg_m2f.RandomCrop', crop_size=crop_size),
    ),
    dict(type='mmseg_m2f.RandomFlip', prob=0.5),
    # Without this the model overfits to the 36 photos, and more iterations do not help.
    dict(type='mmseg_m2f.PhotoMetricDistortion'),
    # A photo has about 40 segments, most of them tiny windows. A few minutes of training are too
    # short to learn them, and they would hinder the rest. Only segments of at least 300 pixels are
    # kept.
    dict(type='mmseg_m2f.PackSegments', keep_empty=False, min_area=300),
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
        type='mmseg_m2f.PanopticDataset',
        data_root='data/tiny/facade',
        ann_file='annotations/panoptic_train.json',
        data_prefix=dict(img='img/train', seg='panoptic/train', label_map='labelmap/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root='data/tiny/facade',
        ann_file='annotations/panoptic_val.json',
        data_prefix=dict(img='img/val', seg='panoptic/val', label_map='labelmap/val'),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='mmseg_m2f.PanopticMetric'),
    # On instances made from the panoptic labels.
    dict(type='mmseg_m2f.InstanceMetric'),
    dict(type='mmseg_m2f.SemanticMetric'),
]
test_evaluator = val_evaluator
