# MMSegmentation's optimizer, in full precision. In place of mmseg's paramwise_cfg.custom_keys
# stands our constructor, which gives parameters the same learning rates and weight decays, with one
# exception: the pixel decoder's level embedding has no weight decay here.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    constructor='mmseg_m2f.Mask2FormerOptimWrapperConstructor',
    paramwise_cfg=dict(backbone_lr_mult=0.1),
)
# 16 images per iteration: 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
