# COCO instances. The one official recipe that leaves out what a crop has emptied, and images
# without an annotation of a single object.
_base_ = './coco-lsj.py'

data_root = 'data/coco'
train_pipeline = _base_.train_pipeline
train_pipeline[-1]['keep_empty'] = False
dataset = dict(type='mmseg_m2f.InstanceDataset', data_root=data_root, metadata='coco_instance')
train_dataloader = dict(
    dataset=dict(
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017'),
        filter_empty=True,
        pipeline=train_pipeline,
        **dataset,
    )
)
val_dataloader = dict(
    dataset=dict(
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        pipeline=_base_.test_pipeline,
        test_mode=True,
        **dataset,
    )
)
test_dataloader = val_dataloader
del dataset

val_evaluator = dict(
    type='mmseg_m2f.InstanceMetric', ann_file=f'{data_root}/annotations/instances_val2017.json'
)
test_evaluator = val_evaluator
