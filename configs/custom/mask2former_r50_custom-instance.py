"""R50 on your own images with COCO-instance annotations (one JSON per split); 1 GPU.

Set ``data_root``, the files and folders, and the number of classes: a class is the position of its
category in the JSON, whatever the id. A run prints that list at its start, and stops there if the
head's number differs. The schedule is the row's: 368,750 iterations of 16 images (the log warns
if yours are fewer). For a small set shorten it, together with the decay of the learning rate:
``train_cfg.max_iters=N param_scheduler.0.milestones=[M1,M2]``.
"""

_base_ = '../mask2former_r50_coco-instance.py'

data = dict(data_root='data/tiny/facade', metadata=None)
train_files = dict(ann_file='annotations/instances_train.json', data_prefix=dict(img='img/train'))
val_files = dict(ann_file='annotations/instances_val.json', data_prefix=dict(img='img/val'))
train_dataloader = dict(dataset=dict(**train_files, **data))
val_dataloader = dict(dataset=dict(**val_files, **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data["data_root"]}/{val_files["ann_file"]}')
test_evaluator = val_evaluator
model = dict(panoptic_head=dict(num_classes=5))
