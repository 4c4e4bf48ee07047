"""Peak memory of this process; no torch is imported."""

import contextlib
import resource
from pathlib import Path

_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


class PeakMemory:
    """The peak of the process, and how far it rises above what is resident when this is made.

    ``ru_maxrss`` cannot tell a peak while the model was built from one of a step, and starts at
    that of the parent. So Linux is asked to forget the peak of this program so far; where it
    refuses, the rise is at most understated.
    """

    def __init__(self) -> None:
        self._earlier = _max_rss()
        self._resident = _status('VmRSS') or self._earlier
        with contextlib.suppress(OSError):
            _CLEAR.write_text('5')

    def read(self) -> tuple[float, float]:
        """MiB: the peak of the whole process, and the rise."""
        peak = _status('VmHWM') or _max_rss()
        return max(peak, self._earlier), peak - self._resident


def _max_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(field: str) -> float | None:
    """MiB of a line of Linux's account of this process."""
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith(f'{field}:')]
    return int(kib) / 1024
