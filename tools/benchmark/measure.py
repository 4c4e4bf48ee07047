"""Agreement of outputs, and time and memory of a step. No torch is imported here: see `run`."""

import contextlib
import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# The environment variable that names the folder shared by the processes of a run.
FOLDER = 'MMSEG_M2F_BENCHMARK_FOLDER'

# What is timed, ready to be called again and again. A returned int is the number of bytes that the
# caller would keep: they are no part of the memory that the step needs.
Step = Callable[[], Any]


class Agreement(NamedTuple):
    """How far the outputs of an implementation lie from the baseline's.

    Attributes:
        difference: what is judged: the kind says which statistic it is.
        limit: what `difference` may be.
        largest: the largest absolute difference, for information.
        labels: the share of equal labels; NaN where there are none.
    """

    difference: float
    limit: float
    largest: float
    labels: float = math.nan

    @property
    def holds(self) -> bool:
        """Whether the outputs are the same but for rounding. NaN is not."""
        return self.difference <= self.limit

    def __str__(self) -> str:
        """Say it in a line."""
        labels = '' if math.isnan(self.labels) else f', {self.labels:.3%} of the labels equal'
        return (
            f'outputs differ by {self.difference:.3g} (allowed {self.limit:.3g}), '
            f'by {self.largest:.3g} at most{labels}'
        )


class Sample(NamedTuple):
    """What one process measured.

    Attributes:
        seconds: the median of its timed steps.
        peak_mib: the largest resident size of the process.
        above_model_mib: how far the steps rose above what was resident before the first.
    """

    seconds: float
    peak_mib: float
    above_model_mib: float


def shared_folder() -> Path:
    """Return the folder that the processes of a run share."""
    return Path(os.environ[FOLDER])


def measure(step: Step, *, steps: int, warm_up: int, per_step: int) -> Sample:
    """Time `steps` calls of `step` after `warm_up` untimed ones."""
    memory = PeakMemory()
    result = None
    for _ in range(warm_up):
        result = step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        result = step()
        seconds.append(time.perf_counter() - start)
    peak, above = memory.read()
    kept = result / 2**20 if isinstance(result, int) else 0.0
    return Sample(statistics.median(seconds) / per_step, peak, above - kept)


class PeakMemory:
    """The peak of this process, and how far it rises above what is resident now.

    `ru_maxrss` alone does not tell a peak of the steps from one of building the model. Linux is
    therefore asked to forget the peak so far; where it refuses, the rise is at most understated.
    """

    def __init__(self) -> None:
        self._earlier = _max_rss()
        self._resident = _status('VmRSS') or self._earlier
        with contextlib.suppress(OSError):
            Path('/proc/self/clear_refs').write_text('5')

    def read(self) -> tuple[float, float]:
        """Return the peak of the whole process and the rise, in MiB."""
        peak = _status('VmHWM') or _max_rss()
        return max(peak, self._earlier), peak - self._resident


def _max_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(field: str) -> float | None:
    """Return a field of Linux's account of this process in MiB; None on other systems."""
    path = Path('/proc/self/status')
    if not path.exists():
        return None
    [kib] = [line.split()[1] for line in path.read_text().splitlines() if line.startswith(field)]
    return int(kib) / 1024
