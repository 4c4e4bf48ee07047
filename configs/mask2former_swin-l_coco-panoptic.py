"""Swin-L on COCO panoptic: 57.8 PQ published by the authors; 16 V100, 737,500 iterations.

arXiv:2112.01527 and its model zoo; 48.6 AP of things, 67.4 mIoU; 200 queries, 100 epochs,
large-scale jitter to 1024, 16 images per iteration (8 GPUs with 2 images here).
"""

_base_ = [
    './_base_/models/mask2former_swin-l_panoptic.py',
    './_base_/datasets/coco-panoptic_lsj-1024.py',
    './_base_/schedules/adamw_8xb2-100e.py',
    './_base_/default_runtime_det.py',
]

model = dict(panoptic_head=dict(num_classes=133, thing_ids=list(range(80)), num_queries=200))
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
