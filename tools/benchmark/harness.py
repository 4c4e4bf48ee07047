"""Timing of implementations against each other: fresh processes in turn, after a gate.

A benchmark script names its cases and implementations in a ``Benchmark`` and hands over to
``main``. Every figure comes from a process of its own, started by turns (A B C C B A ...), so that
a machine that gets slower or busier does so for all. No figure is printed before the outputs of all
cases agree. This file imports no torch: a process's ``ru_maxrss`` starts at that of its parent.
"""

import argparse
import contextlib
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.benchmark.memory import PeakMemory

ROOT = Path(__file__).resolve().parents[2]
# Names to the processes of a run the folder they share; the gates run first and may fill it.
FOLDER = 'MMSEG_M2F_BENCHMARK_FOLDER'

# A step of an implementation, ready to be called again and again. If it returns an int, these are
# bytes that its caller would keep: no part of the memory that the step needs.
Step = Callable[[], Any]


class Agreement(NamedTuple):
    """Largest absolute difference of an output, what it may be, and the share of equal labels."""

    difference: float
    limit: float
    argmax: float = math.nan


# Of all implementations, or of each by name: a string says why it cannot run here.
Verdict = tuple[float, float] | Agreement | Mapping[str, Agreement | str]


class Benchmark(NamedTuple):
    """What a script offers; the ``implementations`` (of each case) end with the ratios' baseline.

    ``prepare(case, implementation)`` builds and returns one step. ``disagreement(case, names)``
    compares the outputs of the implementations named. Cases and implementations in ``optional`` run
    only where they are named. A step does ``per_step`` times what its time is stated for.
    """

    module: str
    cases: Sequence[str]
    implementations: Sequence[str] | Mapping[str, Sequence[str]]
    prepare: Callable[[str, str], Step]
    disagreement: Callable[[str, Sequence[str]], Verdict]
    optional: Sequence[str] = ()
    per_step: int = 1

    def of(self, case: str) -> Sequence[str]:
        """The implementations of a case."""
        if isinstance(self.implementations, Mapping):
            return self.implementations[case]
        return self.implementations


class Sample(NamedTuple):
    """One process: the median of its steps, in seconds, and its peak memory in MiB."""

    seconds: float
    peak_mib: float
    above_model_mib: float = math.nan


class Row(NamedTuple):
    """One line of the table; ``ratio`` is this median over the baseline's, below 1 is faster.

    ``above_model_mib`` is the peak of the steps above what was resident before the first.
    ``argmax_agreement`` is NaN where there are no label maps to compare.
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
    above_model_mib: float
    argmax_agreement: float


class Gate(NamedTuple):
    """What the gate of a case found of each implementation that runs, and the version of torch."""

    agreements: dict[str, Agreement]
    torch: str


def folder() -> Path:
    """Of the files that the processes of a run share."""
    return Path(os.environ[FOLDER])


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> None:
    """Command line of a benchmark script.

    Raises:
        SystemExit: the outputs of a case disagree, or a measuring process failed.
    """
    args = _parse(benchmark, argv)
    if args.measure:
        _write(args.result, _measure(benchmark, args)._asdict())
    elif args.gate:
        _write(args.result, gate_findings(benchmark, *args.gate))
    else:
        with _shared_folder():
            _compare(benchmark, args)


@contextlib.contextmanager
def _shared_folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as path:
        os.environ[FOLDER] = path
        try:
            yield
        finally:
            del os.environ[FOLDER]


def _parse(benchmark: Benchmark, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    named = list(dict.fromkeys(name for case in benchmark.cases for name in benchmark.of(case)))
    for option, known in (('--cases', list(benchmark.cases)), ('--implementations', named)):
        default = [name for name in known if name not in benchmark.optional]
        parser.add_argument(option, nargs='+', choices=known, default=default)
    parser.add_argument('--pairs', type=int, default=5, help='processes per implementation')
    parser.add_argument('--steps', type=int, default=3, help='timed steps per process')
    parser.add_argument('--warm-up', type=int, default=1, help='steps before, not timed')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--csv', type=Path, help='where to write the table')
    # What follows is between this program and the processes it starts.
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--gate', nargs='+', help=argparse.SUPPRESS)
    parser.add_argument('--result', type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _measure(benchmark: Benchmark, args: argparse.Namespace) -> Sample:
    step = benchmark.prepare(*args.measure)
    memory = PeakMemory()
    kept = None
    for _ in range(args.warm_up):
        kept = step()
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        kept = step()
        seconds.append(time.perf_counter() - start)
    peak, above = memory.read()
    kept_mib = kept / 2**20 if isinstance(kept, int) else 0
    return Sample(statistics.median(seconds) / benchmark.per_step, peak, above - kept_mib)


def gate_findings(benchmark: Benchmark, case: str, *names: str) -> dict[str, Any]:
    """What the process of a gate finds, as it is written down."""
    verdict = benchmark.disagreement(case, names)
    if not isinstance(verdict, Mapping):
        verdict = dict.fromkeys(names, Agreement(*verdict))
    return {'torch': _torch_version(), 'verdict': dict(verdict)}


def _compare(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """All gates, then case by case; whatever ends the run leaves the table of those before."""
    gates = {case: _gate(benchmark, case, args) for case in args.cases}
    rows: list[Row] = []
    # Before the table, which may be a file that the commit has.
    state = commit()
    for case, gate in gates.items():
        samples = _alternate(benchmark, case, list(gate.agreements), args)
        rows += summarise(case, samples, gate, threads=args.threads, commit=state)
        print(format_rows(rows[-len(samples) :]), flush=True)
        if args.csv:
            write_csv(args.csv, rows)


def _gate(benchmark: Benchmark, case: str, args: argparse.Namespace) -> Gate:
    names = [name for name in benchmark.of(case) if name in args.implementations]
    found = _run(benchmark, ['--gate', case, *names], args)
    agreements = {}
    for name in names:
        verdict = found['verdict'][name]
        if isinstance(verdict, str):
            print(f'{case} {name}: left out: {verdict}', flush=True)
            continue
        agreements[name] = _checked(case, name, Agreement(*verdict))
    if not agreements:
        sys.exit(f'{case}: none of the implementations that were named runs')
    return Gate(agreements, found['torch'])


def _checked(case: str, name: str, agreement: Agreement) -> Agreement:
    difference, limit, argmax = agreement
    # Written so that NaN fails.
    if not difference <= limit:
        sys.exit(
            f'{case} {name}: outputs differ by {difference:.3g}, allowed {limit:.3g}; nothing timed'
        )
    labels = '' if math.isnan(argmax) else f', {argmax:.4%} of the labels equal'
    print(
        f'{case} {name}: outputs differ by {difference:.3g} (allowed {limit:.3g}){labels}',
        flush=True,
    )
    return agreement


def _alternate(
    benchmark: Benchmark, case: str, names: Sequence[str], args: argparse.Namespace
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for pair in range(args.pairs):
        for name in names[:: 1 if pair % 2 == 0 else -1]:
            options = ['--measure', case, name, '--steps', str(args.steps)]
            options += ['--warm-up', str(args.warm_up)]
            samples[name].append(Sample(**_run(benchmark, options, args)))
            print(f'{case} {name}: {samples[name][-1].seconds:.3g} s', file=sys.stderr, flush=True)
    return samples


def _run(benchmark: Benchmark, options: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Start this benchmark's script again for one measurement."""
    threads = str(args.threads)
    environment = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads}
    with tempfile.TemporaryDirectory() as path:
        result = Path(path) / 'result.json'
        command = [sys.executable, '-m', benchmark.module, *options, '--result', str(result)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f'{" ".join(options)} failed:\n{done.stdout}{done.stderr}')
        return json.loads(result.read_text())


def summarise(
    case: str, samples: dict[str, list[Sample]], gate: Gate, *, threads: int, commit: str
) -> list[Row]:
    """One row per implementation; the last of ``samples`` is the baseline."""
    baseline = statistics.median(s.seconds for s in samples[list(samples)[-1]])
    rows = []
    for name, taken in samples.items():
        p25, median, p75 = quartiles([s.seconds for s in taken])
        rows.append(
            Row(
                case=case,
                impl=name,
                median_s=median,
                p25=p25,
                p75=p75,
                peak_mib=statistics.median(s.peak_mib for s in taken),
                ratio=median / baseline,
                max_abs_diff=gate.agreements[name].difference,
                threads=threads,
                torch=gate.torch,
                commit=commit,
                above_model_mib=statistics.median(s.above_model_mib for s in taken),
                argmax_agreement=gate.agreements[name].argmax,
            )
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
        f'{row.case:>14} {row.impl:>14}: {row.median_s:8.4f} s ({row.p25:.4f} to {row.p75:.4f}), '
        f'{row.peak_mib:7.0f} MiB, {row.above_model_mib:.0f} of them for the steps; '
        f'time x{row.ratio:.3f}, memory x{row.peak_mib / baseline.peak_mib:.3f}'
        for row in rows
    )


def write_csv(path: Path, rows: Sequence[NamedTuple]) -> None:
    """The table, numbers to four significant digits, what there is no number of left empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(rows[0]._fields)
        for row in rows:
            writer.writerow([_cell(value) for value in row])


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return '' if math.isnan(value) else f'{value:.4g}'


def commit() -> str:
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
