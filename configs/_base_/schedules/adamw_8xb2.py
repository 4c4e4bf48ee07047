# The official optimiser: AdamW, a tenth of the rate in the backbone, gradients clipped at 0.01.
optim_wrapper = dict(
    type='mmseg_m2f.AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    # Fused: one kernel for all parameters, the same step up to rounding.
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    constructor='mmseg_m2f.Mask2FormerOptimWrapperConstructor',
    paramwise_cfg=dict(backbone_lr_mult=0.1),
)
# 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
