"""Mixed precision, optimizer, resuming, and checks before a run. Importing registers them."""

from mmseg_m2f.adapters.training import amp, cpu_hooks, head_config, optimizer, resume, run_check

__all__ = ['amp', 'cpu_hooks', 'head_config', 'optimizer', 'resume', 'run_check']
