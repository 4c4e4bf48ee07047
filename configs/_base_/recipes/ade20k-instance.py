"""ADE20K instances, crop 640, 160k iterations: the official recipe (arXiv:2112.01527).

The authors also leave the semantic and panoptic results on. Here they are off: nothing scores
them, and where all classes are things the panoptic filter for things drops no instance, so that
the instances are the same.
"""

_base_ = [
    '../runtime_det.py',
    '../datasets/ade20k-instance.py',
    '../tasks/instance.py',
    '../schedules/adamw_8xb2-160k.py',
]

model = dict(panoptic_head=dict(num_classes=100))
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
