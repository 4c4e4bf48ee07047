# MMSegmentation's optimiser: full precision. Its list of multipliers by parameter name gives
# the groups of this constructor.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    constructor='mmseg_m2f.Mask2FormerOptimWrapperConstructor',
    paramwise_cfg=dict(backbone_lr_mult=0.1),
)
# 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
