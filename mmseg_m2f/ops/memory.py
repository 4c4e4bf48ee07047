"""What becomes of the memory that a process on a CPU frees."""

import ctypes
import functools
import logging
import platform

from mmseg_m2f.ops.native import Library

logger = logging.getLogger('mmseg_m2f')

LIBRARY = Library('memory', __file__, extends_torch=True)

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for what it allocates next.

    A training step on a CPU takes and frees some GB in large tensors. By default the system is
    asked for each of them and gets it back, and clears every page of it again: what that costs is
    in docs/benchmarks. On Linux with a C++ compiler tensors of a MiB or more are put together from
    the pages that others have left (``memory.cpp``): kept is what they held together at their peak,
    whatever their sizes. PyTorch's own settings of its allocator do not reach them. Otherwise
    glibc is asked to keep its heap, where sizes that change from step to step leave holes. What a
    process has held it holds until it ends. A process that it starts by fork does the same.

    Returns:
        True if it was done, False where neither can be.
    """
    return _recycle() or keep_heap()


def keep_heap() -> bool:
    """The second way of `keep_freed_memory` alone, which two variables of glibc can do as well."""
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*option) for option in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER)))


@functools.cache
def _recycle() -> bool:
    if platform.system() != 'Linux' or LIBRARY.why_not() is not None:
        return False
    if not LIBRARY.loaded().recycle():
        logger.warning(
            "memory: not PyTorch's own allocator is there, or pages are larger than 64 KiB: freed "
            "memory is glibc's to keep"
        )
        return False
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)  # holes that no tensor will fill from now on
    return True


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == 'glibc'
