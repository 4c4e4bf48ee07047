_base_ = './adamw_8xb2_mmseg.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160_000, val_interval=5000)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=160_000, by_epoch=False)
]
