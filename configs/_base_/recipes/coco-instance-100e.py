"""COCO instances, 100 epochs: the official recipe (arXiv:2112.01527)."""

_base_ = [
    '../runtime_det.py',
    '../datasets/coco-instance.py',
    '../tasks/instance.py',
    '../schedules/adamw_8xb2-100e.py',
]

model = dict(panoptic_head=dict(num_classes=80))
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
