_base_ = './adamw_8xb2.py'

max_iters = 300_000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
param_scheduler = [
    # One beyond the last: MMEngine's PolyLR would reach 0 in the last iteration.
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters + 1, by_epoch=False)
]
del max_iters
