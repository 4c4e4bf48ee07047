# COCO instances. Only this official recipe leaves out instances that a crop made empty, and images
# that have only crowds or no annotation at all.
_base_ = './coco_lsj-1024.py'

data_root = 'data/coco'
train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='mmseg_m2f.PackSegments', keep_empty=False),
]
train_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.InstanceDataset',
        data_root=data_root,
        metadata='coco_instance',
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017'),
        filter_empty=True,
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.InstanceDataset',
        data_root=data_root,
        metadata='coco_instance',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='mmseg_m2f.InstanceMetric', ann_file=f'{data_root}/annotations/instances_val2017.json'
)
test_evaluator = val_evaluator
