"""Swin-L on Mapillary Vistas panoptic: 45.5 PQ published by the authors; 16 V100, 300k iterations.

arXiv:2112.01527 and its model zoo; 60.8 mIoU; 200 queries, crop 1024, 16 images per iteration (8
GPUs with 2 images here).
"""

_base_ = [
    './_base_/models/mask2former_swin-l_panoptic.py',
    './_base_/datasets/mapillary-panoptic_1024x1024.py',
    './_base_/schedules/adamw_8xb2-300k.py',
    './_base_/default_runtime_det.py',
]

model = dict(
    panoptic_head=dict(
        num_classes=65,
        thing_ids=[0, 1, 8, *range(19, 24), *range(32, 43), *range(44, 58), *range(59, 63)],
        num_queries=200,
    ),
    # The official code gives no instances here, and no class probability is too low.
    test_cfg=dict(instance_on=False, object_mask_thr=0.0),
)
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
