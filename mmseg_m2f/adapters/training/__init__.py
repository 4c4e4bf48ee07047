"""Mixed precision, optimizer, resuming, and checks before a run. Importing registers them."""

from mmseg_m2f.adapters.training import (
    amp,
    batch_size,
    cpu_speed,
    head_config,
    keep_memory,
    optimizer,
    resume,
    run_check,
)

__all__ = [
    'amp',
    'batch_size',
    'cpu_speed',
    'head_config',
    'keep_memory',
    'optimizer',
    'resume',
    'run_check',
]
