"""Applies each mutant to a copy of the repository and runs the tests that must fail.

Exit status 0 says that every mutant was killed: its tests pass on the unchanged code, and one of
them fails on the changed code. The working tree is never written to.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

ROOT = Path(__file__).parents[2]
if __name__ == '__main__':
    # A script's own folder comes first on the path; there a file `core.py` holds mutants.
    sys.path[0] = str(ROOT)

from tests.mutants.mutant import Mutant  # noqa: E402
from tests.mutants.records import MUTANTS  # noqa: E402

NOT_COPIED = ('.git', '.venv*', '.*_cache', '.cache', 'work_dirs', 'build', 'dist')
# Exit statuses of pytest.
PASSED, FAILED = 0, 1
FIRST_FAILURE = re.compile(r'^FAILED (\S+)', re.MULTILINE)
# The tests crashed the interpreter, so the mutant did not go unnoticed.
CRASHED = tuple(
    -number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE)
)
KILLED = 'killed'

Item = TypeVar('Item')


class Outcome(NamedTuple):
    """``verdict`` is 'killed', or in capitals what is wrong; ``detail`` explains it."""

    verdict: str
    detail: str


class Finished(NamedTuple):
    """Exit status of pytest, None if the time limit was reached, and what it printed."""

    status: int | None
    output: str

    def tail(self) -> str:
        return '\n'.join(self.output.splitlines()[-25:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants asked for; return 1 if one of them is not killed, else 0."""
    options = _parsed(arguments)
    chosen = [mutant for mutant in MUTANTS if _is_asked_for(mutant, options.only)]
    if not chosen:
        print(f'no mutant is called {" or ".join(options.only)}; --list shows all of them')
        return 1
    if options.list:
        for mutant in chosen:
            print(f'{mutant.name} ({mutant.file})\n    {mutant.breaks}')
        return 0
    failing = set()
    if not options.no_baseline:
        failing = _failing_files(chosen, options.jobs, options.limit)
    run = partial(_outcome, failing=failing, limit=options.limit)
    others = []
    for mutant, outcome in _in_parallel(run, chosen, options.jobs):
        print(f'{outcome.verdict} {mutant.name}: {outcome.detail}', flush=True)
        if outcome.verdict != KILLED:
            others.append((mutant, outcome))
    print(f'{len(chosen) - len(others)} of {len(chosen)} mutants killed')
    for mutant, outcome in others:
        print(f'{outcome.verdict} {mutant.name} ({mutant.file}): {mutant.breaks}')
    return 1 if others else 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--only',
        nargs='+',
        default=['*'],
        metavar='NAME',
        help='names of mutants, or paths of the files they change; * stands for any text',
    )
    parser.add_argument('--jobs', type=int, default=2, help='test runs side by side (default 2)')
    parser.add_argument('--list', action='store_true', help='show the mutants and run nothing')
    parser.add_argument(
        '--limit', type=float, default=300, help='seconds for one test run (default 300)'
    )
    parser.add_argument(
        '--no-baseline',
        action='store_true',
        help='trust that the tests pass on the unchanged code',
    )
    return parser.parse_args(arguments)


def _is_asked_for(mutant: Mutant, patterns: Sequence[str]) -> bool:
    texts = (mutant.name, mutant.file)
    return any(fnmatch(text, pattern) for pattern in patterns for text in texts)


def _failing_files(mutants: Iterable[Mutant], jobs: int, limit: float) -> set[str]:
    """Test files that fail without any mutant, which would kill every mutant."""
    files = sorted({test for mutant in mutants for test in mutant.tests})
    print(f'{len(files)} test files on the unchanged code', flush=True)
    failing = set()
    with _copy() as root:
        for file, done in _in_parallel(partial(_pytest_one, root=root, limit=limit), files, jobs):
            if done.status != PASSED:
                failing.add(file)
                print(f'{file} does not pass on the unchanged code:\n{done.tail()}', flush=True)
            else:
                print(f'passes: {file}', flush=True)
    return failing


def _in_parallel(
    function: Callable[[Item], NamedTuple], items: Sequence[Item], jobs: int
) -> Iterator[tuple[Item, NamedTuple]]:
    """Items and their results as they come; each is announced with its number and its time."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_timed, function, item): item for item in items}
        for number, future in enumerate(as_completed(futures), 1):
            result, seconds = future.result()
            print(f'[{number}/{len(items)}, {seconds:.0f} s] ', end='')
            yield futures[future], result


def _timed(function: Callable[[Item], NamedTuple], item: Item) -> tuple[NamedTuple, float]:
    start = time.monotonic()
    return function(item), time.monotonic() - start


def _outcome(mutant: Mutant, failing: set[str], limit: float) -> Outcome:
    """What the tests of a mutant say to it."""
    if (count := mutant.count()) != 1:
        return Outcome('STALE', f'the old text occurs {count} times in {mutant.file}')
    if missing := [test for test in mutant.tests if not (ROOT / test).is_file()]:
        return Outcome('STALE', f'there is no {", ".join(missing)}')
    if already := sorted(failing.intersection(mutant.tests)):
        return Outcome('NOT RUN', f'{", ".join(already)} fails without it')
    with _copy() as root:
        mutant.apply(root)
        done = _pytest(mutant.tests, root, limit)
    if done.status is None:
        return Outcome('TIMED OUT', f'after {limit:g} s')
    if done.status == PASSED:
        return Outcome('SURVIVED', f'{" ".join(mutant.tests)} pass')
    if done.status in CRASHED:
        return Outcome(KILLED, 'by a crash of the interpreter')
    if done.status != FAILED:
        return Outcome('BROKEN', f'the tests could not run:\n{done.tail()}')
    found = FIRST_FAILURE.search(done.output)
    return Outcome(KILLED, f'by {found.group(1)}' if found else 'by a test')


@contextmanager
def _copy() -> Iterator[Path]:
    """A copy of the repository without its history and its environments."""
    with tempfile.TemporaryDirectory(prefix='mutant_', ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve() / 'tree'
        shutil.copytree(ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        yield root


def _pytest_one(file: str, root: Path, limit: float) -> Finished:
    return _pytest([file], root, limit)


def _environment(root: Path) -> dict[str, str]:
    variables = {'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    # Libraries compiled from changed C++ sources must not stay in the user's cache.
    changed = [file for file in root.rglob('*.cpp') if file.read_bytes() != _original(file, root)]
    return variables | ({'XDG_CACHE_HOME': str(root.parent)} if changed else {})


def _original(file: Path, root: Path) -> bytes:
    return (ROOT / file.relative_to(root)).read_bytes()


def _pytest(tests: Sequence[str], root: Path, limit: float) -> Finished:
    """Run test files of a copy until the first failure."""
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *tests]
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, **_environment(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        return Finished(process.returncode, output)
    except subprocess.TimeoutExpired:
        # Tests start processes of their own, which would keep the pipe open.
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return Finished(None, output)


if __name__ == '__main__':
    sys.exit(main())
