"""Swin-T on Cityscapes instances: 39.7 AP published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 66.9 AP50; crop 512x1024, 16 images per iteration.
"""

_base_ = [
    './_base_/models/mask2former_swin-t_instance.py',
    './_base_/datasets/cityscapes-instance_512x1024.py',
    './_base_/schedules/adamw_8xb2-90k.py',
    './_base_/default_runtime_det.py',
]

model = dict(panoptic_head=dict(num_classes=8))
default_hooks = dict(checkpoint=dict(save_best='cityscapes/AP'))
