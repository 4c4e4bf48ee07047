"""Cityscapes instances, crop 512x1024, 90k iterations: the official recipe (arXiv:2112.01527)."""

_base_ = [
    '../runtime_det.py',
    '../datasets/cityscapes-instance.py',
    '../tasks/instance.py',
    '../schedules/adamw_8xb2-90k.py',
]

model = dict(panoptic_head=dict(num_classes=8))
default_hooks = dict(checkpoint=dict(save_best='cityscapes/AP'))
