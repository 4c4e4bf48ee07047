# 100 epochs of COCO.
_base_ = './adamw_8xb2.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=737_500, val_interval=5000)
param_scheduler = [
    dict(type='MultiStepLR', milestones=[655_556, 710_184], gamma=0.1, by_epoch=False)
]
