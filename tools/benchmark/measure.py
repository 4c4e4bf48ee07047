"""Agreement of outputs, and time and memory of a step. No torch is imported here: see `run`."""

import contextlib
import math
import os
import re
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
    """The measurements of one process.

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
    earlier, resident = _resident_mib('VmHWM'), _resident_mib('VmRSS')
    # Let Linux forget the peak so far, which is that of building the model. It may refuse.
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    result = None
    for _ in range(warm_up):
        result = step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        result = step()
        seconds.append(time.perf_counter() - start)
    peak = _resident_mib('VmHWM')
    kept = result / 2**20 if isinstance(result, int) else 0.0
    above = peak - resident - kept
    return Sample(statistics.median(seconds) / per_step, max(peak, earlier), above)


def _resident_mib(field: str) -> float:
    """Return the resident size of this process (`VmRSS`) or its peak (`VmHWM`)."""
    status = Path('/proc/self/status').read_text()
    [kib] = re.findall(rf'^{field}:\s+(\d+) kB', status, re.MULTILINE)
    return int(kib) / 1024
