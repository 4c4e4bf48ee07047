"""The instance demo's model with MMDetection's own Mask2Former: a comparison."""

_base_ = ['./mask2former_r18_facade-instance.py', '../_base_/peers/mmdet_demo.py']

things, stuff = 5, 0
# As its users train on a CPU: in float32, MMEngine's own AMP refuses one.
optim_wrapper = dict(dtype='float16')
ours_alone = 'ChannelsLastHook'
custom_hooks = [hook for hook in _base_.custom_hooks if not hook.type.endswith(ours_alone)]
model = dict(
    type='mmdet.Mask2Former',
    data_preprocessor=dict(pad_mask=True, mask_pad_value=0, pad_seg=False),
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
        panoptic_on=False,
        semantic_on=False,
        instance_on=True,
        max_per_image=100,
    ),
)
del things, stuff, ours_alone
