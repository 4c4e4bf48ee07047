"""What the C library does with the memory that a process frees."""

import ctypes
import platform

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for what it allocates next.

    A training step on a CPU takes and frees some GB in large tensors. By default glibc asks the
    system for each of them and gives it back, and the system clears every page of it again: a
    fifth of the time of a step on two cores (R50, 512 x 512, two pictures, measured by us). What a
    process has held once it holds until it ends, and so do processes that it starts by fork. With
    sizes that change from step to step its peak may become higher. It cannot be undone.

    Returns:
        True if glibc took the setting. Another C library is left as it is; an allocator that was
        put before glibc's own knows nothing of it.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
