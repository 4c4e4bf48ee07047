"""Swin-L on ADE20K instances: 34.9 AP published by the authors; 16 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; 200 queries, crop 640, 16 images per iteration (8 GPUs with 2
images here).
"""

_base_ = [
    './_base_/models/mask2former_swin-l_instance.py',
    './_base_/datasets/ade20k-instance_640x640.py',
    './_base_/schedules/adamw_8xb2-160k.py',
    './_base_/default_runtime_det.py',
]

model = dict(panoptic_head=dict(num_classes=100, num_queries=200))
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
