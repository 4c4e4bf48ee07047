# The official optimizer: AdamW, a tenth of the learning rate for the backbone, gradients clipped to
# a norm of 0.01.
optim_wrapper = dict(
    type='mmseg_m2f.AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    # One kernel updates all parameters. The step is the same up to rounding.
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    constructor='mmseg_m2f.Mask2FormerOptimWrapperConstructor',
    paramwise_cfg=dict(backbone_lr_mult=0.1),
)
# 16 images per iteration: 8 GPUs with 2 images each. On 16 GPUs use a batch size of 1.
auto_scale_lr = dict(enable=False, base_batch_size=16)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
