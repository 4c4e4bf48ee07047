# A short schedule for a few minutes on two CPU cores. The backbone is not pre-trained, so it learns
# at the full rate.
optim_wrapper = dict(
    type='mmseg_m2f.AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    constructor='mmseg_m2f.Mask2FormerOptimWrapperConstructor',
    paramwise_cfg=dict(backbone_lr_mult=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=50, end=501, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=500, val_interval=500)
auto_scale_lr = dict(enable=False, base_batch_size=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
