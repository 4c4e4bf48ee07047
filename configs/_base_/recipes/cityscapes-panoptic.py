"""Cityscapes panoptic, crop 512x1024, 90k iterations: the official recipe (arXiv:2112.01527)."""

_base_ = [
    '../runtime_det.py',
    '../datasets/cityscapes-panoptic.py',
    '../tasks/panoptic.py',
    '../schedules/adamw_8xb2-90k.py',
]

model = dict(panoptic_head=dict(num_classes=19, thing_ids=list(range(11, 19))))
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
