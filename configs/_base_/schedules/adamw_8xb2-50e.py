_base_ = './adamw_8xb2.py'

max_iters = 368_750  # 50 epochs of COCO
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
param_scheduler = [
    dict(type='MultiStepLR', milestones=[327_778, 355_092], gamma=0.1, by_epoch=False)
]
del max_iters
