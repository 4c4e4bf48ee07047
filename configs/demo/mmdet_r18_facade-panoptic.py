"""MMDetection's own Mask2Former in the place of the panoptic demo's model: a comparison."""

_base_ = [
    '../_base_/models/mmdet_r18_demo.py',
    '../_base_/datasets/facade-panoptic.py',
    '../_base_/schedules/adamw_demo-1000.py',
    '../_base_/default_runtime_det.py',
]

train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(_base_.train_pipeline[-1], layout='mmdet'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = [
    dict(type='mmseg_m2f.PanopticMetric'),
    dict(type='mmseg_m2f.InstanceMetric'),
]
test_evaluator = val_evaluator
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1000, save_best=None, max_keep_ckpts=1)
)
# Two runs on one machine give the same numbers.
randomness = dict(seed=0)
