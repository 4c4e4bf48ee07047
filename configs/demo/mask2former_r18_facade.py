"""R18 from scratch on the facade photos in data/tiny: the demo, a few minutes on two CPU cores."""

_base_ = [
    '../_base_/models/mask2former.py',
    '../_base_/datasets/facade.py',
    '../_base_/schedules/adamw_demo.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    # Nothing is downloaded: the backbone and its batch norms learn from the start.
    backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type='BN'), norm_eval=False),
    # Smaller than the paper's head, for a CPU.
    decode_head=dict(
        num_classes=11,
        num_queries=20,
        pixel_decoder=dict(channels=64, num_layers=1, ffn_dim=256, mixed_precision=True),
        decoder=dict(num_layers=6, ffn_dim=256),
        losses=dict(points=dict(num_points=1024)),
    ),
)
# bfloat16 where the processor has instructions for it, else float32.
optim_wrapper = dict(dtype='auto')
custom_hooks = [*_base_.custom_hooks, dict(type='mmseg_m2f.CpuSpeedHook')]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1000, save_best=None, max_keep_ckpts=1)
)
# Two runs on one machine give the same numbers.
randomness = dict(seed=0)
