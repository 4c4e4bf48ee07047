# Cityscapes instances, the 8 things.
_base_ = './cityscapes-segments_512x1024.py'

data_root = 'data/cityscapes'
train_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.InstanceDataset',
        data_root=data_root,
        metadata='cityscapes_instance',
        ann_file='gtFine/cityscapes_instance_train.json',
        data_prefix=dict(img='leftImg8bit/train'),
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.InstanceDataset',
        data_root=data_root,
        metadata='cityscapes_instance',
        ann_file='gtFine/cityscapes_instance_val.json',
        data_prefix=dict(img='leftImg8bit/val'),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='mmseg_m2f.CityscapesInstanceMetric', gt_dir=f'{data_root}/gtFine/val'),
    dict(
        type='mmseg_m2f.InstanceMetric', ann_file=f'{data_root}/gtFine/cityscapes_instance_val.json'
    ),
]
test_evaluator = val_evaluator
