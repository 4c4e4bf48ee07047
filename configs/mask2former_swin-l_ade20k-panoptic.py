"""Swin-L on ADE20K panoptic: 48.1 PQ published by the authors; 16 V100, 160k iterations.

arXiv:2112.01527 and its model zoo; 34.2 AP of things, 54.5 mIoU; 200 queries, crop 640, 16 images
per iteration (8 GPUs with 2 images here).
"""

_base_ = [
    './_base_/models/mask2former_swin-l_panoptic.py',
    './_base_/datasets/ade20k-panoptic_640x640.py',
    './_base_/schedules/adamw_8xb2-160k.py',
    './_base_/default_runtime_det.py',
]

model = dict(
    panoptic_head=dict(
        num_classes=150,
        # Things and stuff are mixed, in the order of the semantic classes.
        thing_ids=[
            *[7, 8, 10, 12, 14, 15, 18, 19, 20, 22, 23, 24, 27, 30, 31, 32, 33, 35, 36, 37, 38, 39],
            *[41, 42, 43, 44, 45, 47, 49, 50, 53, 55, 56, 57, 58, 62, 64, 65, 66, 67, 69, 70, 71],
            *[72, 73, 74, 75, 76, 78, 80, 81, 82, 83, 85, 86, 87, 88, 89, 90, 92, 93, 95, 97, 98],
            *[102, 103, 104, 107, 108, 110, 111, 112, 115, 116, 118, 119, 120, 121, 123, 124, 125],
            *[126, 127, 129, 130, 132, 133, 134, 135, 136, 137, 138, 139, 142, 143, 144, 146, 147],
            *[148, 149],
        ],
        num_queries=200,
    )
)
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
