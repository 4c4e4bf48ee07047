"""Time, memory and host synchronisations on one GPU, and the tables of the GPU benchmarks.

On a CPU, for dry runs, the clock is the host's and what only a GPU can tell is left empty.
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.benchmark import harness

# Cycles that the GPU idles before each timed call: about a millisecond, in which the host launches
# all of it. What is written over before each call is more than the level 2 cache holds.
SLEEP_CYCLES, CACHE_BYTES = 2_000_000, 256 * 2**20


class Options(NamedTuple):
    """Of every GPU benchmark's command line."""

    out: Path
    dry_run: bool

    @property
    def device(self) -> torch.device:
        """The GPU, or in a dry run the CPU."""
        return torch.device('cpu' if self.dry_run else 'cuda')


def parse(description: str | None) -> Options:
    """Read the command line.

    Raises:
        SystemExit: torch sees no GPU, and this is no dry run.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='the folder of the tables')
    parser.add_argument('--dry-run', action='store_true', help='tiny sizes, on the CPU')
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit('torch sees no GPU here')
    return Options(args.out, args.dry_run)


class Row(NamedTuple):
    """One line of a table; ``peak_mib`` is of the GPU's memory, above what was there before.

    ``floor_s`` is the least time in which the bytes can move, ``synchronisations`` how often a call
    makes the host wait for the GPU.
    """

    case: str
    impl: str
    median_s: float
    p25: float
    p75: float
    peak_mib: float
    ratio: float
    max_abs_diff: float
    threads: int
    torch: str
    commit: str
    device: str
    floor_s: float
    synchronisations: float


class Figures(NamedTuple):
    """What was measured of one implementation."""

    seconds: list[float]
    peak_mib: float
    max_abs_diff: float
    synchronisations: float = math.nan


class Table:
    """Rows that are printed, and written to a file of their own, as soon as they are known."""

    def __init__(self, name: str, options: Options) -> None:
        self.device = _device_name(options.device)
        conditions = f'{self.device}_torch{torch.__version__}'
        self.path = options.out / f'{name}_{_slug(conditions)}.csv'
        self.failures: list[str] = []
        self._rows: list[Row] = []
        self._commit = _commit()

    def add(
        self,
        case: str,
        found: Mapping[str, Figures],
        baseline: Figures | None,
        floor: float = math.nan,
    ) -> None:
        """A row for each implementation; without a ``baseline`` there are no ratios."""
        median = statistics.median(baseline.seconds) if baseline is not None else math.nan
        for name, figures in found.items():
            self._rows.append(self._row(case, name, figures, median, floor))
            print(_line(self._rows[-1]), flush=True)
        if self._rows:
            harness.write_csv(self.path, self._rows)

    def _row(self, case: str, name: str, figures: Figures, baseline: float, floor: float) -> Row:
        p25, median, p75 = harness.quartiles(figures.seconds)
        return Row(
            case=case,
            impl=name,
            median_s=median,
            p25=p25,
            p75=p75,
            peak_mib=figures.peak_mib,
            ratio=median / baseline,
            max_abs_diff=figures.max_abs_diff,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            commit=self._commit,
            device=self.device,
            floor_s=floor,
            synchronisations=figures.synchronisations,
        )

    def leave_out(self, case: str, name: str, reason: str) -> None:
        """Say why an implementation has no row: it cannot run here, which is no failure."""
        print(f'{case} {name}: left out: {reason}', flush=True)

    def fail(self, case: str, name: str, reason: str) -> None:
        """Say what went wrong; the others go on, and ``finish`` will fail."""
        self.failures.append(f'{case} {name}')
        print(f'{case} {name}: FAILED: {reason}', flush=True)

    def finish(self) -> None:
        """Fail if something of ours has.

        Raises:
            SystemExit: an implementation failed, or there is no row at all.
        """
        if self._rows:
            print(f'{len(self._rows)} rows in {self.path}', flush=True)
        else:
            self.fail('every case', 'every implementation', 'nothing was measured')
        if self.failures:
            sys.exit(f'failed: {", ".join(self.failures)}')


def attempt(table: Table, case: str, name: str, work: Callable[[], Any], *, ours: bool) -> Any:
    """The result of ``work``, or None after saying why there is none: a peer's failure is news."""
    try:
        return work()
    except Exception as error:
        first = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
        if ours:
            traceback.print_exc(file=sys.stdout)
            table.fail(case, name, first)
        else:
            table.leave_out(case, name, first)
        return None


def _line(row: Row) -> str:
    parts = [
        f'{row.case:>28} {row.impl:>16}: {1e3 * row.median_s:9.4f} ms '
        f'({1e3 * row.p25:.4f} to {1e3 * row.p75:.4f}), differs by {row.max_abs_diff:.2g}'
    ]
    for value, text in (
        (row.ratio, 'x{:.3f}'),
        (row.peak_mib, '{:.0f} MiB'),
        (row.synchronisations, '{:.0f} synchronisations'),
        (row.median_s / row.floor_s, '{:.1f} floors'),
    ):
        if not math.isnan(value):
            parts.append(text.format(value))
    return ', '.join(parts)


def _device_name(device: torch.device) -> str:
    return 'cpu' if device.type == 'cpu' else _slug(torch.cuda.get_device_name())


def _slug(text: str) -> str:
    """For the names of files: letters, digits, dots, underscores and hyphens."""
    return re.sub(r'[^a-z0-9._]+', '-', text.lower())


def _commit() -> str:
    """Of the code; from the variable COMMIT where the history is not at hand."""
    try:
        return harness.commit()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get('COMMIT', 'unknown')


def synchronise(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize()


def timed_by_turns(
    steps: Mapping[str, harness.Step],
    device: torch.device,
    *,
    rounds: int,
    budget: float,
    kernels_only: bool = False,
) -> dict[str, list[float]]:
    """Seconds of calls of each step, in turns (A B C C B A ...), after one call to estimate.

    Args:
        steps: each has been called before.
        device: where they run.
        rounds: turns of each step; one in a dry run.
        budget: seconds that a step's calls may take together; on a GPU at least 3 are timed a turn,
            in a dry run one.
        kernels_only: time the GPU alone, each time with a cold cache; the host's launches are
            hidden behind a GPU that is told to idle.
    """
    rounds = 1 if device.type == 'cpu' else rounds
    clock = _Clock(device, kernels_only=kernels_only)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    least, most = (1, 1) if device.type == 'cpu' else (3, 30)
    estimates = {name: statistics.median(clock.read(step, least)) for name, step in steps.items()}
    names = list(steps)
    for turn in range(rounds):
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            number = int(budget / rounds / (estimates[name] + clock.overhead))
            seconds[name] += clock.read(steps[name], min(max(number, least), most))
    return seconds


class _Clock:
    def __init__(self, device: torch.device, *, kernels_only: bool) -> None:
        self.device = device
        self.hides = kernels_only and device.type == 'cuda'
        self.overhead = 2e-3 if self.hides else 0.0
        size = CACHE_BYTES if self.hides else 0
        self.cache = torch.empty(size, dtype=torch.int8, device=device)

    def read(self, step: harness.Step, number: int) -> list[float]:
        """Seconds of each of ``number`` calls."""
        if self.device.type == 'cpu':
            return [_host_seconds(step) for _ in range(number)]
        events = []
        for _ in range(number):
            if self.hides:
                self.cache.zero_()
                torch.cuda._sleep(SLEEP_CYCLES)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]


def _host_seconds(step: harness.Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_mib(step: harness.Step, device: torch.device, before: int | None = None) -> float:
    """The GPU's memory at its peak in a call, above ``before`` or what is allocated now."""
    if device.type == 'cpu':
        return math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if before is None else before
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def count_synchronisations(step: harness.Step, device: torch.device) -> float:
    """How often a call makes the host wait for the GPU, as torch itself notices."""
    if device.type == 'cpu':
        return math.nan
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    torch.cuda.synchronize()
    return sum('called a synchronizing' in str(warning.message) for warning in noted)


def bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy within the device's memory."""
    source = torch.empty(2**30 if device.type == 'cuda' else 2**20, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    source.random_()
    for _ in range(3):
        target.copy_(source)
    found = timed_by_turns({'copy': lambda: target.copy_(source)}, device, rounds=2, budget=0.1)
    return 2 * source.numel() / statistics.median(found['copy'])
