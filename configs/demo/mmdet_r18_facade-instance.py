"""MMDetection's own Mask2Former in the place of the instance demo's model: a comparison."""

_base_ = [
    '../_base_/models/mmdet_r18_demo.py',
    '../_base_/datasets/facade-instance.py',
    '../_base_/schedules/adamw_demo-1000.py',
    '../_base_/default_runtime_det.py',
]

model = dict(
    data_preprocessor=dict(pad_seg=False),
    panoptic_head=dict(
        num_things_classes=5,
        num_stuff_classes=0,
        loss_cls=dict(class_weight=[1.0] * 5 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=5, num_stuff_classes=0),
    test_cfg=dict(
        _delete_=True,
        panoptic_on=False,
        semantic_on=False,
        instance_on=True,
        max_per_image=100,
    ),
)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1000, save_best=None, max_keep_ckpts=1)
)
# Two runs on one machine give the same numbers.
randomness = dict(seed=0)
