"""R50 on your own images with COCO instance annotations (one JSON file per split); 1 GPU.

1. Set `data_root`, the files and folders, and `num_classes`. Category ids do not matter: the first
   category of the JSON file is class 0, and so on. Every run prints the classes at its start, and
   stops if the JSON file and `num_classes` do not agree.
2. The schedule of the base config is for a large data set: 368,750 iterations of 16 images. For a
   small one, shorten it together with the two steps of the learning rate, here to 5,000 iterations:
   --cfg-options train_cfg.max_iters=5000 "param_scheduler.0.milestones=[4400,4800]"
3. On one GPU an iteration has 2 images, and the log warns: the learning rate is for 16. Lower it,
   for example with optim_wrapper.optimizer.lr=1.25e-5.
"""

_base_ = '../mask2former_r50_coco-instance.py'

data_root = 'data/tiny/facade'
train_ann_file = 'annotations/instances_train.json'
val_ann_file = 'annotations/instances_val.json'

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=train_ann_file,
        data_prefix=dict(img='img/train'),
        metadata=None,  # the class names come from the JSON file, not from COCO
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=val_ann_file,
        data_prefix=dict(img='img/val'),
        metadata=None,
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=f'{data_root}/{val_ann_file}')
test_evaluator = val_evaluator

model = dict(panoptic_head=dict(num_classes=5))
