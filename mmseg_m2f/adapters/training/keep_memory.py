"""A hook that lets a process on a CPU keep the memory it frees."""

import ctypes
import logging
import platform

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmseg_m2f.registry import HOOKS

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


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
        print_log(
            'KeepMemoryHook: it needs glibc; freed memory goes back to the system as usual',
            logger='current',
            level=logging.WARNING,
        )
