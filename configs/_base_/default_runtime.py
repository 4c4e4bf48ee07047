default_scope = 'mmseg'
# Registers our parts, and puts our checkpoint loader in place before a tool reads weights.
custom_imports = dict(imports=['mmseg_m2f.adapters'])
env_cfg = dict(
    # Training crops have one size, and padded test images have few.
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3, save_best='mIoU'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
custom_hooks = [
    dict(type='mmseg_m2f.ClassCheckHook'),
    dict(type='mmseg_m2f.HeadConfigHook'),
    dict(type='mmseg_m2f.BatchSizeHook'),
    dict(type='mmseg_m2f.RandomStateHook'),
]

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')

log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
