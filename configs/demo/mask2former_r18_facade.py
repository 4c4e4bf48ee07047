"""R18 from scratch on the facade photos in data/tiny: the demo, a few minutes on two CPU cores."""

_base_ = [
    '../_base_/recipes/facade-demo.py',
    '../_base_/backbones/r18.py',
    '../_base_/tasks/semantic.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size, test_cfg=dict(size_divisor=32)),
    backbone=_base_.preset_backbone,
    # Smaller than the paper's head, for the CPU.
    decode_head=dict(
        num_classes=11,
        in_channels=_base_.preset_in_channels,
        num_queries=20,
        pixel_decoder=dict(channels=64, num_layers=1, ffn_dim=256, mixed_precision=True),
        decoder=dict(num_layers=6, ffn_dim=256),
        losses=dict(points=dict(num_points=1024)),
    ),
)
# What a processor with instructions for bfloat16 is fastest with.
optim_wrapper = dict(dtype='auto')
custom_hooks = [*_base_.custom_hooks, dict(type='mmseg_m2f.ChannelsLastHook')]
# The same numbers on the same machine.
randomness = dict(seed=0)
