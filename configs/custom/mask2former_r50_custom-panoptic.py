"""R50 on your own images with COCO-panoptic annotations (one JSON and PNG per split); 1 GPU.

Set ``data_root``, the files and folders, and how many classes there are and which are things: a
class is the position of its category in the JSON, whatever the id. A run prints that list at its
start, and stops there if the head's differs. The schedule is the row's: 368,750 iterations of 16
images (the log warns if yours are fewer). For a small set shorten it, together with the decay:
``train_cfg.max_iters=N param_scheduler.0.milestones=[M1,M2]``.
"""

_base_ = '../mask2former_r50_coco-panoptic.py'

data = dict(data_root='data/tiny/facade', metadata=None)
train_dirs = dict(img='img/train', seg='panoptic/train')
val_dirs = dict(_delete_=True, img='img/val', seg='panoptic/val')  # without label maps
train_files = dict(ann_file='annotations/panoptic_train.json', data_prefix=train_dirs)
val_files = dict(ann_file='annotations/panoptic_val.json', data_prefix=val_dirs)
train_dataloader = dict(dataset=dict(**train_files, **data))
val_dataloader = dict(dataset=dict(**val_files, **data))
test_dataloader = val_dataloader
val_evaluator = [dict(type=f'mmseg_m2f.{m}Metric') for m in ('Panoptic', 'Instance', 'Semantic')]
test_evaluator = val_evaluator
model = dict(panoptic_head=dict(num_classes=11, thing_ids=[0, 1, 2, 3, 4]))
