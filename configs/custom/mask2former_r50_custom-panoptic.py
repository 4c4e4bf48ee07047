"""R50 on your own images with COCO panoptic annotations (a JSON file and PNG files); 1 GPU.

1. Set `data_root`, the files and folders, `num_classes` and `thing_ids`. Category ids do not
   matter: the first category of the JSON file is class 0, and so on. `thing_ids` lists the classes
   whose `isthing` is 1. Every run prints the classes at its start, and stops if the JSON file and
   the head do not agree.
2. The schedule of the base config is for a large data set: 368,750 iterations of 16 images. For a
   small one, shorten it together with the two steps of the learning rate, here to 5,000 iterations:
   --cfg-options train_cfg.max_iters=5000 "param_scheduler.0.milestones=[4400,4800]"
3. On one GPU an iteration has 2 images, and the log warns: the learning rate is for 16. Lower it,
   for example with optim_wrapper.optimizer.lr=1.25e-5.
"""

_base_ = '../mask2former_r50_coco-panoptic.py'

data_root = 'data/tiny/facade'

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/panoptic_train.json',
        data_prefix=dict(img='img/train', seg='panoptic/train'),
        metadata=None,  # the class names come from the JSON file, not from COCO
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/panoptic_val.json',
        # `_delete_` drops COCO's folder of label maps: mIoU is computed on the panoptic PNG files.
        data_prefix=dict(_delete_=True, img='img/val', seg='panoptic/val'),
        metadata=None,
    )
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='mmseg_m2f.PanopticMetric'),
    dict(type='mmseg_m2f.InstanceMetric'),
    dict(type='mmseg_m2f.SemanticMetric'),
]
test_evaluator = val_evaluator

model = dict(panoptic_head=dict(num_classes=11, thing_ids=[0, 1, 2, 3, 4]))
