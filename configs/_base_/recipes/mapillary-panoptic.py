"""Mapillary Vistas panoptic, crop 1024, 300k iterations: the official recipe (arXiv:2112.01527).

Without instances, and with no threshold on a segment's class probability.
"""

_base_ = [
    '../runtime_det.py',
    '../datasets/mapillary-panoptic.py',
    '../tasks/panoptic.py',
    '../schedules/adamw_8xb2-300k.py',
]

model = dict(
    panoptic_head=dict(
        num_classes=65,
        thing_ids=[0, 1, 8, *range(19, 24), *range(32, 43), *range(44, 58), *range(59, 63)],
    ),
    test_cfg=dict(instance_on=False, object_mask_thr=0.0),
)
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
