"""A hook that lets a run's model compute faster on a CPU."""

from importlib.util import find_spec

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class CpuSpeedHook(Hook):
    """Call ``mmseg_m2f.cpu.speed_up`` on the model before a run trains, validates or tests.

    The weights, their names and, up to rounding, the results stay what they are. On another device
    nothing changes. Where the folder ``mmseg_m2f/cpu`` has been deleted, one line says so.
    """

    def before_run(self, runner: Runner) -> None:
        """Give the known parts of the model their faster forwards."""
        if find_spec('mmseg_m2f.cpu') is None:
            print_log('CpuSpeedHook: mmseg_m2f.cpu is not installed: no change', logger='current')
            return
        from mmseg_m2f import cpu  # type: ignore[attr-defined,unused-ignore]  # may be deleted

        cpu.speed_up(runner.model)
