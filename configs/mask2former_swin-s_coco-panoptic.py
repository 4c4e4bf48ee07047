"""Swin-S on COCO panoptic: 54.6 PQ published by the authors; 8 V100, 368,750 iterations.

arXiv:2112.01527 and its model zoo; 44.7 AP of things, 64.2 mIoU; 50 epochs, large-scale jitter to
1024, 16 images per iteration.
"""

_base_ = [
    './_base_/models/mask2former_swin-s_panoptic.py',
    './_base_/datasets/coco-panoptic_lsj-1024.py',
    './_base_/schedules/adamw_8xb2-50e.py',
    './_base_/default_runtime_det.py',
]

model = dict(panoptic_head=dict(num_classes=133, thing_ids=list(range(80))))
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
