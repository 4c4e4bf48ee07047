"""Instance R18 from scratch on the things of the facade photos in data/tiny: a demo."""

_base_ = [
    '../_base_/recipes/facade-instance-demo.py',
    '../_base_/backbones/r18.py',
    '../_base_/tasks/instance.py',
]

model = dict(
    backbone=_base_.preset_backbone,
    # Smaller than the paper's head, for the CPU.
    panoptic_head=dict(
        num_classes=5,
        in_channels=_base_.preset_in_channels,
        num_queries=40,
        pixel_decoder=dict(channels=128, num_layers=1, ffn_dim=256, mixed_precision=True),
        decoder=dict(num_layers=3, ffn_dim=256),
        losses=dict(points=dict(num_points=2048)),
    ),
)
# What a processor with instructions for bfloat16 is fastest with.
optim_wrapper = dict(dtype='auto')
custom_hooks = [*_base_.custom_hooks, dict(type='mmseg_m2f.ChannelsLastHook')]
# The same numbers on the same machine.
randomness = dict(seed=0)
