"""The panoptic demo's model with MMDetection's own Mask2Former: a comparison."""

_base_ = ['./mask2former_r18_facade-panoptic.py', '../_base_/peers/mmdet_demo.py']

things, stuff = 5, 6
# As its users train on a CPU: in float32, MMEngine's own AMP refuses one.
optim_wrapper = dict(dtype='float16')
ours_alone = 'ChannelsLastHook'
custom_hooks = [hook for hook in _base_.custom_hooks if not hook.type.endswith(ours_alone)]
model = dict(
    type='mmdet.Mask2Former',
    data_preprocessor=dict(pad_mask=True, mask_pad_value=0, pad_seg=True, seg_pad_value=255),
    panoptic_head=dict(
        _delete_=True,
        num_things_classes=things,
        num_stuff_classes=stuff,
        loss_cls=dict(
            class_weight=[1.0] * (things + stuff) + [0.1], **_base_.preset_mmdet_class_loss
        ),
        **_base_.preset_mmdet_head,
    ),
    panoptic_fusion_head=dict(
        type='mmdet.MaskFormerFusionHead',
        num_things_classes=things,
        num_stuff_classes=stuff,
        loss_panoptic=None,
    ),
    train_cfg=_base_.preset_mmdet_train_cfg,
    test_cfg=dict(
        _delete_=True,
        panoptic_on=True,
        semantic_on=False,  # it has no semantic output
        instance_on=True,
        max_per_image=100,
        object_mask_thr=_base_.model.test_cfg.object_mask_thr,
        iou_thr=0.8,
        filter_low_score=True,
    ),
)
train_pipeline = _base_.train_pipeline
train_pipeline[-1]['layout'] = 'mmdet'
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = [
    dict(type='mmseg_m2f.PanopticMetric'),
    dict(type='mmseg_m2f.InstanceMetric'),
]
test_evaluator = val_evaluator
del things, stuff, ours_alone
