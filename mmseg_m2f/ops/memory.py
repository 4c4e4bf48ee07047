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
    tenth of the time of a step. The peak stays what it is; what the process holds after it, too.

    Returns:
        True if the C library does so from now on: glibc. Another one is left as it is.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
