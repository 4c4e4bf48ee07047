_base_ = './adamw_8xb2.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=90_000, val_interval=5000)
param_scheduler = [
    # The end lies one iteration after the last, because PolyLR of MMEngine would otherwise train
    # the last iteration at a rate of 0.
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=90_001, by_epoch=False)
]
