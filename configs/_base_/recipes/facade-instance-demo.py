"""The instance demo's data and schedule, for any head."""

_base_ = ['../runtime_det.py', '../datasets/facade-instance.py', '../schedules/adamw_demo-1000.py']

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1000, save_best=None, max_keep_ckpts=1)
)
