"""Swin-T on Cityscapes panoptic: 63.9 PQ published by the authors; 8 V100, 90k iterations.

arXiv:2112.01527 and its model zoo; 39.1 AP of things, 80.5 mIoU; crop 512x1024, 16 images per
iteration.
"""

_base_ = [
    './_base_/models/mask2former_swin-t_panoptic.py',
    './_base_/datasets/cityscapes-panoptic_512x1024.py',
    './_base_/schedules/adamw_8xb2-90k.py',
    './_base_/default_runtime_det.py',
]

model = dict(panoptic_head=dict(num_classes=19, thing_ids=list(range(11, 19))))
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
