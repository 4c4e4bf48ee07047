"""Apply each mutant to a copy of the repository, and run the tests that must fail on it.

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == '__main__':
    # A script's own folder comes first on the path; there a file `core.py` holds mutants.
    sys.path[0] = str(ROOT)

from tests.mutants.mutant import Mutant  # noqa: E402
from tests.mutants.records import MUTANTS  # noqa: E402

NOT_COPIED = ('.git', '.venv*', '.*_cache', '.cache', 'work_dirs', 'build', 'dist')
PASSED, FAILED = 0, 1  # exit statuses of pytest
# The tests crashed the interpreter, so the mutant did not go unnoticed.
CRASHED = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants asked for; return 1 if one of them is not killed, else 0."""
    options = parsed(arguments)
    chosen = [
        mutant
        for mutant in MUTANTS
        if any(fnmatch(text, p) for text in (mutant.name, mutant.file) for p in options.only)
    ]
    if options.list:
        for mutant in chosen:
            print(f'{mutant.name} ({mutant.file})\n    {mutant.breaks}')
        return 0
    files = sorted({test for mutant in chosen for test in mutant.tests})
    unchanged = each_with_progress(unchanged_verdict, files, options.jobs)
    failing = {file for file, verdict in unchanged.items() if verdict != 'passes'}
    verdicts = each_with_progress(mutant_verdict, chosen, options.jobs)
    alive = [mutant.name for mutant in chosen if not verdicts[mutant].startswith('killed')]
    alive += [mutant.name for mutant in chosen if failing.intersection(mutant.tests)]
    print(f'{len(chosen)} mutants; not killed: {alive or "none"}')
    return 1 if alive or not chosen else 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    names = 'names of mutants, or paths of the files they change; * stands for any text'
    parser.add_argument('--only', nargs='+', default=['*'], metavar='NAME', help=names)
    parser.add_argument('--jobs', type=int, default=2, help='test runs side by side (default 2)')
    parser.add_argument('--list', action='store_true', help='show the mutants and run nothing')
    return parser.parse_args(arguments)


def each_with_progress(
    verdict_of: Callable[[Any], str], items: Sequence[Any], jobs: int
) -> dict[Any, str]:
    """Return the verdict on each item; print it as soon as it is known."""
    verdicts = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(verdict_of, item): item for item in items}
        for number, future in enumerate(as_completed(futures), 1):
            item = futures[future]
            verdicts[item] = future.result()
            name = getattr(item, 'name', item)
            print(f'[{number}/{len(items)}] {name}: {verdicts[item]}', flush=True)
    return verdicts


def unchanged_verdict(file: str) -> str:
    """Tell if a test file passes without any mutant; if not, it would kill every mutant."""
    with copy_of_repository() as root:
        status, output = run_tests([file], root)
    return 'passes' if status == PASSED else f'FAILS WITHOUT A MUTANT\n{output}'


def mutant_verdict(mutant: Mutant) -> str:
    """Tell what the tests of a mutant say to it."""
    with copy_of_repository() as root:
        mutant.apply(root)
        status, output = run_tests(mutant.tests, root, is_cpp=mutant.file.endswith('.cpp'))
    if status in (FAILED, *CRASHED):
        found = re.search(r'^FAILED (\S+)', output, re.MULTILINE)
        return f'killed by {found.group(1) if found else "a crash of the interpreter"}'
    return 'SURVIVED' if status == PASSED else f'TESTS COULD NOT RUN\n{output}'


@contextmanager
def copy_of_repository() -> Iterator[Path]:
    """Yield a copy without history and environments."""
    with tempfile.TemporaryDirectory(prefix='mutant_', ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve() / 'tree'
        shutil.copytree(ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        yield root


def run_tests(tests: Sequence[str], root: Path, is_cpp: bool = False) -> tuple[int | None, str]:
    """Run test files of a copy until the first failure; the status is None after 300 seconds."""
    variables = {'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    if is_cpp:  # libraries compiled from changed sources must not stay in the user's cache
        variables['XDG_CACHE_HOME'] = str(root.parent)
    process = subprocess.Popen(
        [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *tests],
        cwd=root,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        # Tests start processes of their own, which would keep the pipe open.
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output


if __name__ == '__main__':
    sys.exit(main())
