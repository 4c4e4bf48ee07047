"""COCO panoptic, 100 epochs: the official recipe (arXiv:2112.01527)."""

_base_ = [
    '../runtime_det.py',
    '../datasets/coco-panoptic.py',
    '../tasks/panoptic.py',
    '../schedules/adamw_8xb2-100e.py',
]

model = dict(panoptic_head=dict(num_classes=133, thing_ids=list(range(80))))
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
