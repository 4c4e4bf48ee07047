# The demo's schedule for instance and panoptic models, which take longer to learn.
_base_ = './adamw_demo.py'

optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=50, end=1001, by_epoch=False),
]
train_cfg = dict(max_iters=1000, val_interval=1000)
