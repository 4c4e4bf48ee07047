# ADE20K instances, the 100 things.
_base_ = './ade20k-segments_640x640.py'

data_root = 'data/ade/ADEChallengeData2016'
train_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.InstanceDataset',
        data_root=data_root,
        metadata='ade20k_instance',
        ann_file='ade20k_instance_train.json',
        data_prefix=dict(img='images/training'),
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.InstanceDataset',
        data_root=data_root,
        metadata='ade20k_instance',
        ann_file='ade20k_instance_val.json',
        data_prefix=dict(img='images/validation'),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='mmseg_m2f.InstanceMetric', ann_file=f'{data_root}/ade20k_instance_val.json'
)
test_evaluator = val_evaluator
