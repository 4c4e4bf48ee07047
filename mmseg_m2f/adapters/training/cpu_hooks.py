"""Hooks for runs on a CPU: faster forwards, and memory that is kept."""

import ctypes
import logging
import platform
from importlib.util import find_spec

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmseg_m2f.registry import HOOKS

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


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


@HOOKS.register_module()
class KeepMemoryHook(Hook):
    """Ask glibc not to return freed memory to the system, for the whole process, until it ends.

    The system clears every page that it hands out, so that large tensors which come and go cost
    time. Without glibc the hook does nothing, and a warning says so.
    """

    def before_run(self, runner: Runner) -> None:
        """Set the two options before the run allocates its tensors."""
        if platform.libc_ver()[0] == 'glibc':
            mallopt = ctypes.CDLL(None).mallopt
            if mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1):
                return
        print_log('KeepMemoryHook needs glibc: no change', logger='current', level=logging.WARNING)
