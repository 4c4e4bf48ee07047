"""Time our models beside those of MMSegmentation, MMDetection and Hugging Face on a CPU.

    python -m tools.benchmark.run                                    # into work_dirs/benchmarks
    python -m tools.benchmark.run --cases inference-r50-512 --processes 2
    python -m tools.benchmark.run --docs --resume                    # docs/benchmarks, its tables

The outputs of all implementations of a case are compared first, with the same weights; unless they
agree nothing is timed. Then every implementation runs in fresh processes, by turns (A B C C B A),
so that a machine that gets slower or busier does so for all. Each process is a line of
`OUT/<kind>.csv`, written at once: `--resume` runs only those that are missing.

This program imports no torch: the peak memory of a process starts at that of its parent.
"""

import argparse
import csv
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.benchmark import tables
from tools.benchmark.cases import CASES, SHORT
from tools.benchmark.measure import FOLDER, ROOT, Agreement, Sample, measure, shared_folder

NOT_COMPARED = Agreement(math.nan, math.nan, math.nan)


class Row(NamedTuple):
    """A line of a CSV file: one process.

    Attributes:
        number: of the process among those of its implementation.
        difference, largest_difference, equal_labels: as `Agreement` has them.
        commit: the state of the code, with `+` if files differed from it.
    """

    case: str
    implementation: str
    number: int
    seconds: float
    peak_mib: float
    above_model_mib: float
    difference: float
    largest_difference: float
    equal_labels: float
    threads: int
    processor: str
    instruction_set: str
    torch: str
    commit: str


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: outputs of a case disagree, or a process failed.
    """
    args = _parse(argv)
    if args.measure:
        _write_result(args, _measure(*args.measure, steps=args.steps))
    elif args.compare:
        _write_result(args, _compare(*args.compare))
    else:
        if args.docs:
            # Before the run: a document with a wrong mark shall not stop it at its end.
            tables.main()
        with tempfile.TemporaryDirectory() as folder:
            os.environ[FOLDER] = folder
            Comparison(args).run()
        if args.docs:
            tables.main()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Time our models beside their peers on a CPU.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    known = sorted(
        {name for case in CASES.values() for name in (*case.implementations, *case.more)}
    )
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES), metavar='CASE')
    parser.add_argument('--short', action='store_true', help=f'the cases {", ".join(SHORT)}')
    parser.add_argument('--implementations', nargs='+', choices=known, help='default: all usual')
    parser.add_argument('--processes', type=int, default=5, help='of each implementation')
    parser.add_argument('--steps', type=int, help='timed in a process; default: as the case says')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='of a process')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/benchmarks')
    parser.add_argument('--docs', action='store_true', help='write docs/benchmarks and its tables')
    parser.add_argument('--resume', action='store_true', help='run what the CSV files lack')
    # Between this program and the processes it starts.
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--compare', nargs='+', help=argparse.SUPPRESS)
    parser.add_argument('--result', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.cases = list(SHORT) if args.short else args.cases
    args.out = tables.FOLDER if args.docs else args.out
    return args


def _measure(case: str, implementation: str, *, steps: int | None) -> dict[str, Any]:
    data = CASES[case]
    step = importlib.import_module(f'tools.benchmark.{data.kind}').prepare(data, implementation)
    sample = measure(step, steps=steps or data.steps, warm_up=data.warm_up, per_step=data.per_step)
    return sample._asdict()


def _compare(case: str, *implementations: str) -> dict[str, Any]:
    import torch

    data = CASES[case]
    module = importlib.import_module(f'tools.benchmark.{data.kind}')
    compare = getattr(module, 'compare', None)
    return {
        'torch': torch.__version__,
        'instruction_set': _instruction_set(torch.backends.cpu.get_cpu_capability()),
        'agreements': compare(data, implementations) if compare else {},
    }


def _write_result(args: argparse.Namespace, result: dict[str, Any]) -> None:
    args.result.write_text(json.dumps(result))


class Comparison:
    """The cases of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.conditions: dict[str, Any] = {
            'threads': args.threads,
            'processor': _cpu_info('model name'),
            'commit': _commit(),
        }

    def run(self) -> None:
        """Run case by case and print the table of each."""
        for case in self.args.cases:
            names = self._implementations(case)
            if not names:
                continue
            rows = self._kept_rows(case, names)
            wanted = {(name, n) for name in names for n in range(self.args.processes)}
            done = {(row['implementation'], int(row['number'])) for row in rows}
            if not wanted <= done:
                self._run_case(case, names, done)
            print(tables.case_table(case, self.args.out), flush=True)

    def _implementations(self, case: str) -> list[str]:
        data = CASES[case]
        if not self.args.implementations:
            return list(data.implementations)
        named = self.args.implementations
        return [name for name in (*data.more, *data.implementations) if name in named]

    def _path(self, case: str) -> Path:
        return self.args.out / f'{CASES[case].kind}.csv'

    def _kept_rows(self, case: str, names: Sequence[str]) -> list[dict[str, str]]:
        """Drop the rows that are to be measured anew from the file; return what is left of them."""
        rows = tables.read(self._path(case))
        own = [row for row in rows if row['case'] == case and row['implementation'] in names]
        expected = {key: str(value) for key, value in self.conditions.items()}
        kept = [row for row in own if self.args.resume and expected.items() <= row.items()]
        if len(kept) < len(own):
            dropped = [row for row in own if row not in kept]
            write_csv(self._path(case), Row._fields, [row for row in rows if row not in dropped])
        return kept

    def _run_case(self, case: str, names: Sequence[str], done: set[tuple[str, int]]) -> None:
        compared = self._start(['--compare', case, *names])
        agreements = {n: Agreement(*values) for n, values in compared['agreements'].items()}
        for name, agreement in agreements.items():
            print(f'{case} {name}: {agreement}', flush=True)
        if not all(agreement.holds for agreement in agreements.values()):
            sys.exit(f'{case}: outputs differ by more than rounding; nothing was timed')
        for number in range(self.args.processes):
            for name in names[:: 1 if number % 2 == 0 else -1]:
                if (name, number) in done:
                    continue
                options = ['--measure', case, name]
                if self.args.steps:
                    options += ['--steps', str(self.args.steps)]
                sample = Sample(**self._start(options))
                print(f'{case} {name}: {sample.seconds:.4g} s', file=sys.stderr, flush=True)
                agreement = agreements.get(name, NOT_COMPARED)
                row = Row(
                    case=case,
                    implementation=name,
                    number=number,
                    **sample._asdict(),
                    difference=agreement.difference,
                    largest_difference=agreement.largest,
                    equal_labels=agreement.labels,
                    torch=compared['torch'],
                    instruction_set=compared['instruction_set'],
                    **self.conditions,
                )
                self._add(row)

    def _add(self, row: Row) -> None:
        """Write a row into the file of its kind."""
        path = self._path(row.case)
        rows = [*tables.read(path), row._asdict()]
        # The order of the cases, so that a case that ran again stands where it stood.
        order = list(CASES)
        rows.sort(key=lambda row: order.index(row['case']))
        write_csv(path, Row._fields, rows)

    def _start(self, options: list[str]) -> dict[str, Any]:
        """Start this program again for one comparison or measurement."""
        threads = str(self.args.threads)
        environment = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads}
        result = shared_folder() / 'result.json'
        command = [sys.executable, '-W', 'ignore', '-m', 'tools.benchmark.run', *options]
        done = subprocess.run(
            [*command, '--result', str(result)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f'{" ".join(options)} failed:\n{done.stdout}{done.stderr}')
        return json.loads(result.read_text())


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return '' if math.isnan(value) else f'{value:.4g}'


def write_csv(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file, numbers to four significant digits and NaN as nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, fields, lineterminator='\n')
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _commit() -> str:
    """Return the short hash of HEAD, with `+` if files other than the tables differ from it."""
    tables_only = [':!docs/benchmarks', ':!README.md']
    commit = _git('rev-parse', '--short=9', 'HEAD')
    return commit + ('+' if _git('status', '--porcelain', '--', '.', *tables_only) else '')


def _git(*arguments: str) -> str:
    command = ['git', *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_info(field: str) -> str:
    """Return a field of /proc/cpuinfo; 'unknown' on other systems."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.partition(':')[2].strip() for line in lines if line.startswith(field)]
    return found[0] if found else 'unknown'


def _instruction_set(capability: str) -> str:
    """Return what torch uses, and what else the processor and oneDNN have."""
    flags = _cpu_info('flags').split()
    more = [flag for flag in ('avx512_bf16', 'amx_tile') if flag in flags]
    limit = os.environ.get('ONEDNN_MAX_CPU_ISA')
    return ' '.join([capability, *more, *([f'oneDNN<={limit}'] if limit else [])])


if __name__ == '__main__':
    main()
