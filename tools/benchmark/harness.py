"""Timing of two implementations against each other: fresh processes in turn, after a gate.

A benchmark script names its cases and implementations in a ``Benchmark`` and hands over to
``main``. Every figure comes from a process of its own, started by turns (A B B A ...), so that a
machine that gets slower or busier does so for both. No figure is printed before the outputs of all
cases agree. This file imports no torch: a process's ``ru_maxrss`` starts at that of its parent.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# A step of an implementation, ready to be called again and again.
Step = Callable[[], Any]


class Benchmark(NamedTuple):
    """What a script offers; ``implementations`` ends with the baseline of the ratios.

    ``prepare(case, implementation)`` builds and returns one step. ``disagreement(case)`` returns
    the largest absolute difference of the outputs and the limit it must keep.
    """

    module: str
    cases: Sequence[str]
    implementations: Sequence[str]
    prepare: Callable[[str, str], Step]
    disagreement: Callable[[str], tuple[float, float]]


class Sample(NamedTuple):
    """One process: the median of its steps, in seconds, and its peak memory in MiB."""

    seconds: float
    peak_mib: float


class Row(NamedTuple):
    """One line of the table; ``ratio`` is this median over the baseline's, below 1 is faster."""

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


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> None:
    """Command line of a benchmark script.

    Raises:
        SystemExit: the outputs of a case disagree, or a measuring process failed.
    """
    args = _parse(benchmark, argv)
    if args.measure:
        _write(args.result, _measure(benchmark, args)._asdict())
    elif args.gate:
        difference, limit = benchmark.disagreement(args.gate)
        _write(args.result, {'difference': difference, 'limit': limit, 'torch': _torch_version()})
    else:
        rows = _compare(benchmark, args)
        if args.csv:
            write_csv(args.csv, rows)


def _parse(benchmark: Benchmark, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        '--cases', nargs='+', choices=benchmark.cases, default=list(benchmark.cases)
    )
    parser.add_argument('--pairs', type=int, default=5, help='processes per implementation')
    parser.add_argument('--steps', type=int, default=3, help='timed steps per process')
    parser.add_argument('--warm-up', type=int, default=1, help='steps before, not timed')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--csv', type=Path, help='where to write the table')
    # What follows is between this program and the processes it starts.
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--gate', help=argparse.SUPPRESS)
    parser.add_argument('--result', type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _measure(benchmark: Benchmark, args: argparse.Namespace) -> Sample:
    step = benchmark.prepare(*args.measure)
    for _ in range(args.warm_up):
        step()
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Sample(statistics.median(seconds), peak_kib / 1024)


def _compare(benchmark: Benchmark, args: argparse.Namespace) -> list[Row]:
    gates = {case: _gate(benchmark, case, args) for case in args.cases}
    rows: list[Row] = []
    for case in args.cases:
        samples = _alternate(benchmark, case, args)
        difference, torch = gates[case]
        rows += summarise(
            case, samples, difference, threads=args.threads, torch=torch, commit=_commit()
        )
        print(format_rows(rows[-len(samples) :]), flush=True)
    return rows


def _gate(benchmark: Benchmark, case: str, args: argparse.Namespace) -> tuple[float, str]:
    found = _run(benchmark, ['--gate', case], args)
    difference, limit = found['difference'], found['limit']
    # Written so that NaN fails.
    if not difference <= limit:
        sys.exit(f'{case}: outputs differ by {difference:.3g}, allowed {limit:.3g}; nothing timed')
    print(f'{case}: outputs differ by {difference:.3g} (allowed {limit:.3g})', flush=True)
    return difference, found['torch']


def _alternate(
    benchmark: Benchmark, case: str, args: argparse.Namespace
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in benchmark.implementations}
    for pair in range(args.pairs):
        order = benchmark.implementations[:: 1 if pair % 2 == 0 else -1]
        for name in order:
            options = ['--measure', case, name, '--steps', str(args.steps)]
            options += ['--warm-up', str(args.warm_up)]
            samples[name].append(Sample(**_run(benchmark, options, args)))
            print(f'{case} {name}: {samples[name][-1].seconds:.3f} s', file=sys.stderr, flush=True)
    return samples


def _run(benchmark: Benchmark, options: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Start this benchmark's script again for one measurement."""
    threads = str(args.threads)
    environment = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / 'result.json'
        command = [sys.executable, '-m', benchmark.module, *options, '--result', str(result)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f'{" ".join(options)} failed:\n{done.stdout}{done.stderr}')
        return json.loads(result.read_text())


def summarise(
    case: str,
    samples: dict[str, list[Sample]],
    difference: float,
    *,
    threads: int,
    torch: str,
    commit: str,
) -> list[Row]:
    """One row per implementation; the last of ``samples`` is the baseline."""
    baseline = statistics.median(s.seconds for s in samples[list(samples)[-1]])
    rows = []
    for name, taken in samples.items():
        seconds = [s.seconds for s in taken]
        p25, median, p75 = quartiles(seconds)
        peak = statistics.median(s.peak_mib for s in taken)
        ratio = median / baseline
        rows.append(
            Row(case, name, median, p25, p75, peak, ratio, difference, threads, torch, commit)
        )
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25th, 50th and 75th percentile; a single value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, middle, high


def format_rows(rows: Sequence[Row]) -> str:
    """Lines for the eye; memory is compared with the last row too."""
    baseline = rows[-1]
    return '\n'.join(
        f'{row.case:>14} {row.impl:>8}: {row.median_s:8.3f} s ({row.p25:.3f} to {row.p75:.3f}), '
        f'{row.peak_mib:7.0f} MiB; time x{row.ratio:.3f}, '
        f'memory x{row.peak_mib / baseline.peak_mib:.3f}'
        for row in rows
    )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The table, numbers to four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(Row._fields)
        for row in rows:
            writer.writerow([f'{v:.4g}' if isinstance(v, float) else v for v in row])


def _commit() -> str:
    """Short hash of the code measured, with ``+`` if files differ from it."""
    command = ['git', 'describe', '--always', '--dirty=+', '--abbrev=9', '--exclude=*']
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _torch_version() -> str:
    import torch

    return torch.__version__


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
