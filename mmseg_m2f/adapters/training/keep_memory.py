"""Freed memory of runs and models on a CPU, kept for what comes next; the hook for it."""

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mmseg_m2f.ops.memory import keep_freed_memory
from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class KeepMemoryHook(Hook):
    """Memory that a run on a CPU frees stays with its process, for what it allocates next.

    See ``ops.memory.keep_freed_memory``, which holds for the whole process and for workers that it
    starts by fork. On a GPU it does nothing; where it cannot be done, the log says so.
    """

    def before_run(self, runner: Runner) -> None:
        """Training, validation and testing all start here."""
        keep_on_cpu(runner.model)


def keep_on_cpu(model: nn.Module) -> None:
    """``keep_freed_memory`` if the model's weights are on the CPU."""
    if _is_on_cpu(model) and not keep_freed_memory():
        print_log(
            'Freed memory goes back to the system: it is kept on Linux with a C++ compiler, or '
            'where the C library is glibc.',
            logger='current',
            level=logging.WARNING,
        )


def _is_on_cpu(model: nn.Module) -> bool:
    parameter = next(model.parameters(), None)
    return parameter is not None and parameter.device.type == 'cpu'
