_base_ = './adamw_8xb2.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=90_000, val_interval=5000)
param_scheduler = [
    # One iteration beyond the last: PolyLR of MMEngine would reach 0 in the last iteration.
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=90_001, by_epoch=False)
]
