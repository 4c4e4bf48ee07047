"""Time our models beside those of MMSegmentation, MMDetection and Hugging Face on a CPU, on Linux.

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
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
    """Run the command line."""
    args = _parse(argv)
    if args.measure or args.compare:
        work = _measure if args.measure else _compare
        args.result.write_text(json.dumps(work(args, *(args.measure or args.compare))))
        return
    if args.docs:
        # Before the run: a document with a wrong mark shall not stop it at its end.
        tables.main()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        for case in args.cases:
            run_case(args, case)
            print(tables.table(case, args.out), flush=True)
    if args.docs:
        tables.main()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Time our models beside their peers on a CPU.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    known = {name for case in CASES.values() for name in (*case.implementations, *case.more)}
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES), metavar='CASE')
    parser.add_argument('--short', action='store_true', help=f'the cases {", ".join(SHORT)}')
    parser.add_argument(
        '--implementations', nargs='+', choices=sorted(known), help='default: all usual'
    )
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


def _measure(args: argparse.Namespace, case: str, implementation: str) -> dict[str, Any]:
    data = CASES[case]
    step = importlib.import_module(f'tools.benchmark.{data.kind}').prepare(data, implementation)
    steps = args.steps or data.steps
    return measure(step, steps=steps, warm_up=data.warm_up, per_step=data.per_step)._asdict()


def _compare(_: argparse.Namespace, case: str, *implementations: str) -> dict[str, Any]:
    import torch

    data = CASES[case]
    module = importlib.import_module(f'tools.benchmark.{data.kind}')
    compare = getattr(module, 'compare', None)
    return {
        'torch': torch.__version__,
        'instruction_set': _instruction_set(torch.backends.cpu.get_cpu_capability()),
        'agreements': compare(data, implementations) if compare else {},
    }


def run_case(args: argparse.Namespace, case: str) -> None:
    """Run the processes of a case and write a row for each into the file of its kind."""
    data, path = CASES[case], args.out / f'{CASES[case].kind}.csv'
    names = list(data.implementations)
    if args.implementations:
        names = [n for n in (*data.more, *data.implementations) if n in args.implementations]
    cpu, commit = _cpu_info('model name'), _commit()
    conditions = {'threads': args.threads, 'processor': cpu, 'commit': commit}
    rows: list[dict[str, Any]] = list(tables.read_csv(path))
    own = [row for row in rows if row['case'] == case and row['implementation'] in names]
    same = {key: str(value) for key, value in conditions.items()}.items()
    kept = [row for row in own if args.resume and same <= row.items()]
    rows = [row for row in rows if row not in own or row in kept]
    done = {(row['implementation'], int(row['number'])) for row in kept}
    numbers = range(args.processes)
    turns = [(name, n) for n in numbers for name in (names if n % 2 == 0 else names[::-1])]
    missing = [turn for turn in turns if turn not in done]
    if not missing:
        return
    compared = start(args, ['--compare', case, *names])
    conditions['torch'] = compared['torch']
    conditions['instruction_set'] = compared['instruction_set']
    agreements = {n: Agreement(*values) for n, values in compared['agreements'].items()}
    for name, agreement in agreements.items():
        print(f'{case} {name}: {agreement}', flush=True)
    if not all(agreement.holds for agreement in agreements.values()):
        sys.exit(f'{case}: outputs differ by more than rounding; nothing was timed')
    for name, number in missing:
        agreement = agreements.get(name, NOT_COMPARED)
        rows.append(_row(args, case, name, number, agreement, conditions)._asdict())
        # The order of the cases, so that a case that ran again stands where it stood.
        rows.sort(key=lambda row: list(CASES).index(row['case']))
        tables.write_csv(path, Row._fields, rows)


def _row(
    args: argparse.Namespace,
    case: str,
    name: str,
    number: int,
    agreement: Agreement,
    conditions: dict[str, Any],
) -> Row:
    """Run one process."""
    steps = ['--steps', str(args.steps)] if args.steps else []
    sample = Sample(**start(args, ['--measure', case, name, *steps]))
    print(f'{case} {name}: {sample.seconds:.4g} s', file=sys.stderr, flush=True)
    return Row(
        case=case,
        implementation=name,
        number=number,
        **sample._asdict(),
        difference=agreement.difference,
        largest_difference=agreement.largest,
        equal_labels=agreement.labels,
        **conditions,
    )


def start(args: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """Start this program again for one comparison or measurement, and return its result."""
    threads = str(args.threads)
    environment = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads}
    result = shared_folder() / 'result.json'
    command = [sys.executable, '-W', 'ignore', '-m', 'tools.benchmark.run', *options]
    command += ['--result', str(result)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f'{" ".join(options)} failed:\n{done.stdout}{done.stderr}')
    return json.loads(result.read_text())


def _commit() -> str:
    """Return the short hash of HEAD, with `+` if files other than the tables differ from it."""
    commit = _git('rev-parse', '--short=9', 'HEAD')
    changes = _git('status', '--porcelain', '--', '.', ':!docs/benchmarks', ':!README.md')
    return f'{commit}+' if changes else commit


def _git(*arguments: str) -> str:
    return subprocess.check_output(['git', *arguments], cwd=ROOT, text=True).strip()


def _cpu_info(field: str) -> str:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    found = (line.partition(':')[2].strip() for line in lines if line.startswith(field))
    return next(found, 'unknown')


def _instruction_set(capability: str) -> str:
    """Return what torch uses, and what else the processor and oneDNN have."""
    flags = _cpu_info('flags').split()
    more = [flag for flag in ('avx512_bf16', 'amx_tile') if flag in flags]
    limit = os.environ.get('ONEDNN_MAX_CPU_ISA')
    return ' '.join([capability, *more, *([f'oneDNN<={limit}'] if limit else [])])


if __name__ == '__main__':
    main()
