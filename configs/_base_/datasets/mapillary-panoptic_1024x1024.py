# Mapillary Vistas 1.2 panoptic, 65 classes. Test images are resized to fit into 2048 x 2048. The
# authors publish no AP, so that no instances are formed.
_base_ = './loaders.py'

short_side = 2048
crop_size = (1024, 1024)
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
    dict(type='mmseg_m2f.PadToSize', size=crop_size, pad_value=128),
    dict(type='mmseg_m2f.PackSegments'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(short_side, short_side), keep_ratio=True, backend='pillow'),
    dict(type='mmseg_m2f.PackSegments'),
]

data_root = 'data/mapillary'
train_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root=data_root,
        metadata='mapillary',
        ann_file='annotations/panoptic_training.json',
        data_prefix=dict(img='training/images', seg='training/panoptic'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root=data_root,
        metadata='mapillary',
        ann_file='annotations/panoptic_validation.json',
        data_prefix=dict(
            img='validation/images', seg='validation/panoptic', label_map='validation/labels'
        ),
        pipeline=test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='mmseg_m2f.PanopticMetric'),
    dict(type='mmseg_m2f.SemanticMetric'),
]
test_evaluator = val_evaluator
