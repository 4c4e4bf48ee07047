"""Swin-L on Cityscapes panoptic: 66.6 PQ published by the authors; 16 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 43.6 AP of things, 82.9 mIoU; 200 queries, crop 512x1024, 16
images per iteration (8 GPUs with 2 images here).
"""

_base_ = [
    './_base_/models/mask2former_swin-l_panoptic.py',
    './_base_/datasets/cityscapes-panoptic_512x1024.py',
    './_base_/schedules/adamw_8xb2-90k.py',
    './_base_/default_runtime_det.py',
]

model = dict(panoptic_head=dict(num_classes=19, thing_ids=list(range(11, 19)), num_queries=200))
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
