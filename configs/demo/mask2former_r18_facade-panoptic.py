"""Panoptic R18 from scratch on the facade photos in data/tiny: the demo, minutes on two cores."""

_base_ = [
    '../_base_/models/mask2former_panoptic.py',
    '../_base_/datasets/facade-panoptic.py',
    '../_base_/schedules/adamw_demo-1000.py',
    '../_base_/default_runtime_det.py',
]

model = dict(
    # Nothing is downloaded: the backbone and its batch norms learn from the start.
    backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type='BN'), norm_eval=False),
    # Smaller than the paper's head, for a CPU.
    panoptic_head=dict(
        num_classes=11,
        thing_ids=[0, 1, 2, 3, 4],
        num_queries=40,
        pixel_decoder=dict(channels=128, num_layers=1, ffn_dim=256, mixed_precision=True),
        decoder=dict(num_layers=3, ffn_dim=256),
        losses=dict(points=dict(num_points=2048)),
    ),
    # After minutes of training hardly a query is as sure of its class as the paper's 0.8.
    test_cfg=dict(object_mask_thr=0.2),
)
# bfloat16 where the processor has instructions for it, else float32.
optim_wrapper = dict(dtype='auto')
custom_hooks = [*_base_.custom_hooks, dict(type='mmseg_m2f.CpuSpeedHook')]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1000, save_best=None, max_keep_ckpts=1)
)
# Two runs on one machine give the same numbers.
randomness = dict(seed=0)
