# Cityscapes panoptic, 19 classes. As in the official code, the AP of the 8 things is computed by
# cityscapesScripts.
_base_ = './cityscapes-segments_512x1024.py'

data_root = 'data/cityscapes'
train_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root=data_root,
        metadata='cityscapes',
        ann_file='gtFine/cityscapes_panoptic_train.json',
        data_prefix=dict(img='leftImg8bit/train', seg='gtFine/cityscapes_panoptic_train'),
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root=data_root,
        metadata='cityscapes',
        ann_file='gtFine/cityscapes_panoptic_val.json',
        data_prefix=dict(
            img='leftImg8bit/val', seg='gtFine/cityscapes_panoptic_val', label_map='gtFine/val'
        ),
        label_map_suffix='_gtFine_labelTrainIds.png',
        pipeline=_base_.test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='mmseg_m2f.PanopticMetric'),
    dict(type='mmseg_m2f.CityscapesInstanceMetric', gt_dir=f'{data_root}/gtFine/val'),
    dict(type='mmseg_m2f.InstanceMetric'),
    dict(type='mmseg_m2f.SemanticMetric'),
]
test_evaluator = val_evaluator
