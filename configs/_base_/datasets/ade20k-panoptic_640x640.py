# ADE20K panoptic, 150 classes in the order of the semantic data set, whose label maps start at 1.
_base_ = './ade20k-segments_640x640.py'

data_root = 'data/ade/ADEChallengeData2016'
train_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root=data_root,
        metadata='ade20k',
        ann_file='ade20k_panoptic_train.json',
        data_prefix=dict(img='images/training', seg='ade20k_panoptic_train'),
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmseg_m2f.PanopticDataset',
        data_root=data_root,
        metadata='ade20k',
        ann_file='ade20k_panoptic_val.json',
        data_prefix=dict(
            img='images/validation', seg='ade20k_panoptic_val', label_map='annotations/validation'
        ),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader

val_evaluator = [
    # The official preparation states the areas of stuff before things cover it. PQ uses these
    # areas.
    dict(type='mmseg_m2f.PanopticMetric', stated_areas=True),
    dict(type='mmseg_m2f.InstanceMetric'),
    dict(type='mmseg_m2f.SemanticMetric', reduce_zero_label=True),
]
test_evaluator = val_evaluator
