"""What the C library does with the memory that a process frees."""

import ctypes
import gc
import platform
from collections.abc import Mapping

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = -1
# glibc's own number of blocks that come from the system one by one.
_MMAP_MAX = 65536
# Bytes. Left alone, glibc raises the first up to 32 MiB, and holds what is smaller in a heap that
# shrinks at its end alone: after a picture of 800 x 1333 300 MiB of holes were left in it.
_LARGE, _LOOSE_END = 1 << 20, 2 << 20


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for what it allocates next.

    A training step on a CPU takes and frees some GB in large tensors. By default glibc asks the
    system for each of them and gives it back, and the system clears every page of it again: a
    fifth of the time of a step on two cores (R50, 512 x 512, two pictures, measured by us). What a
    process has held once it holds until it ends, and so do processes that it starts by fork, unless
    `return_freed_memory` is called. With sizes that change from step to step its peak may become
    higher.

    Returns:
        True if glibc took the setting. Another C library is left as it is; an allocator that was
        put before glibc's own knows nothing of it.
    """
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER})


def return_freed_memory() -> bool:
    """Let this process give back each tensor of a MiB or more as soon as it frees it.

    The opposite of `keep_freed_memory`, for pictures whose peak counts more than their time. It
    holds for the whole process, and what is free by now is given back, too. Large tensors that
    were allocated before, while the process kept its memory, may stay with it.

    Returns:
        True if glibc took the setting. Another C library is left as it is.
    """
    done = _set({_M_MMAP_MAX: _MMAP_MAX, _M_MMAP_THRESHOLD: _LARGE, _M_TRIM_THRESHOLD: _LOOSE_END})
    if done:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _set(options: Mapping[int, int]) -> bool:
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) for option, value in options.items())
