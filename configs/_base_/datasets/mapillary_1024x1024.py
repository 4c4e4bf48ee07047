# Mapillary Vistas 1.2 semantic, 65 classes. Label 65 is ignored. Test images are resized to fit
# into 2048 x 2048.
_base_ = './loaders.py'

data_root = 'data/mapillary'
short_side = 2048
crop_size = (1024, 1024)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
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
    dict(type='RandomFlip', prob=0.5),
    dict(type='Pad', size=crop_size[::-1], pad_val=dict(img=128, seg=65)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(short_side, short_side), keep_ratio=True, backend='pillow'),
    # Loaded after the resize, so that the label map keeps the original size. The prediction is
    # resized to it.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
# The sizes behind the published mIoU with multi-scale and flip are not known. These are the factors
# of the other data sets.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(short_side, short_side), keep_ratio=True, backend='pillow'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(
                    type='Resize',
                    scale=(short_side * i // 4, short_side * i // 4),
                    keep_ratio=True,
                    backend='pillow',
                )
                for i in range(2, 8)
            ],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='mmseg_m2f.LoadAnnotationsIfAny')],
            [dict(type='PackSegInputs')],
        ],
    ),
]

train_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.SemanticDataset',
        data_root=data_root,
        metadata='mapillary',
        data_prefix=dict(img_path='training/images', seg_map_path='training/labels'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.SemanticDataset',
        data_root=data_root,
        metadata='mapillary',
        data_prefix=dict(img_path='validation/images', seg_map_path='validation/labels'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=65)
test_evaluator = val_evaluator
