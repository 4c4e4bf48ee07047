"""Swin-S on COCO instances: 46.3 AP published by the authors; 8 V100, 368,750 iterations.

arXiv:2112.01527 and its model zoo; 32.9 boundary AP; 50 epochs, large-scale jitter to 1024, 16
images per iteration.
"""

_base_ = [
    './_base_/models/mask2former_swin-s_instance.py',
    './_base_/datasets/coco-instance_lsj-1024.py',
    './_base_/schedules/adamw_8xb2-50e.py',
    './_base_/default_runtime_det.py',
]

model = dict(panoptic_head=dict(num_classes=80))
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
