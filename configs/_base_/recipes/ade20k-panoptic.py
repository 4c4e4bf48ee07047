"""ADE20K panoptic, crop 640, 160k iterations: the official recipe (arXiv:2112.01527)."""

_base_ = [
    '../runtime_det.py',
    '../datasets/ade20k-panoptic.py',
    '../tasks/panoptic.py',
    '../schedules/adamw_8xb2-160k.py',
]

# In the order of the semantic classes, things and stuff are mixed.
thing_ids = """
7 8 10 12 14 15 18 19 20 22 23 24 27 30 31 32 33 35 36 37 38 39 41 42 43 44 45 47 49 50 53 55 56
57 58 62 64 65 66 67 69 70 71 72 73 74 75 76 78 80 81 82 83 85 86 87 88 89 90 92 93 95 97 98 102
103 104 107 108 110 111 112 115 116 118 119 120 121 123 124 125 126 127 129 130 132 133 134 135
136 137 138 139 142 143 144 146 147 148 149
"""
model = dict(panoptic_head=dict(num_classes=150, thing_ids=[int(i) for i in thing_ids.split()]))
del thing_ids
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
