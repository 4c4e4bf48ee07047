# 50 epochs of COCO.
_base_ = './adamw_8xb2.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=368_750, val_interval=5000)
param_scheduler = [
    dict(type='MultiStepLR', milestones=[327_778, 355_092], gamma=0.1, by_epoch=False)
]
