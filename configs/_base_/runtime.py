# Says that this is a text configuration: MMEngine 0.10.7 concludes from an import that it is not.
_base_ = []

from importlib.util import find_spec  # noqa: E402

default_scope = 'mmseg'
# Our checkpoint loader has to be in place before a tool of mmseg's reads weights: MMSegInferencer
# does so before it builds the model.
custom_imports = dict(imports=['mmseg_m2f.adapters'])
env_cfg = dict(
    # The training crop has one size, and test images padded to multiples of 32 have few.
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

# TensorBoard is optional, and MMEngine's back end stops the run where it is missing.
vis_backends = [dict(type='LocalVisBackend')]
if find_spec('tensorboard'):
    vis_backends.append(dict(type='TensorboardVisBackend'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')

log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
