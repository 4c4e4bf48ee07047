"""The hook that lets a run on a CPU keep the memory it frees."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmseg_m2f.ops.memory import keep_freed_memory
from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class KeepMemoryHook(Hook):
    """Memory that a run on a CPU frees stays with its process, for what it allocates next.

    A fifth of the time of a training step on two cores, measured; see
    ``ops.memory.keep_freed_memory``. On a GPU it does nothing. It holds for the whole process.
    """

    def before_run(self, runner: Runner) -> None:
        """Training, validation and testing all start here."""
        keep_on_cpu(runner.model)


def keep_on_cpu(model: nn.Module) -> None:
    """``keep_freed_memory`` if the model's weights are on the CPU."""
    if next(model.parameters()).device.type == 'cpu':
        keep_freed_memory()
