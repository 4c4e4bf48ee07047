# COCO panoptic. Images without things are used, too. As in the official code, mask AP is computed
# on COCO's instance annotations. The label maps for mIoU are made by tools/prepare_dataset.py.
_base_ = './coco_lsj-1024.py'

data_root = 'data/coco'
train_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root=data_root,
        metadata='coco_panoptic',
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(img='train2017', seg='annotations/panoptic_train2017'),
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root=data_root,
        metadata='coco_panoptic',
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(
            img='val2017',
            seg='annotations/panoptic_val2017',
            label_map='panoptic_semseg_val2017',
        ),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='mmseg_m2f.PanopticMetric'),
    dict(
        type='mmseg_m2f.InstanceMetric', ann_file=f'{data_root}/annotations/instances_val2017.json'
    ),
    dict(type='mmseg_m2f.SemanticMetric'),
]
test_evaluator = val_evaluator
