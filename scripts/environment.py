"""A virtual environment of one stack: where its parts are, and how to run commands in it.

Like all set-up scripts this keeps to the standard library and to the syntax of Python 3.8, so that
somebody with a wrong Python is told so and does not meet a syntax error.
"""

import glob
import os
import subprocess
import time
from subprocess import DEVNULL
from typing import List, Optional

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRESS_SECONDS = 30
LOG_TAIL_LINES = 15


class SetupError(Exception):
    """One sentence: what is missing and how to get it."""


def succeeds(command: List[str]) -> bool:
    """Tell whether the command starts and exits with status 0. Its output is dropped."""
    try:
        return (
            subprocess.run(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL).returncode == 0
        )
    except OSError:
        return False


class Environment:
    """The virtual environment at ``path`` for ``stack`` ('onedl' or 'openmmlab')."""

    def __init__(self, path: str, stack: str) -> None:
        self.path = os.path.abspath(path)
        self.stack = stack
        self.python = os.path.join(self.path, 'bin', 'python')
        self.log = os.path.join(self.path, 'setup.log')
        self.constraints = os.path.join(self.path, 'constraints.txt')
        self._started = time.monotonic()

    def say(self, message: str) -> None:
        print(f'[setup {time.monotonic() - self._started:4.0f} s] {message}', flush=True)

    def requirements(self, name: str) -> str:
        return os.path.join(ROOT, 'requirements', name + '.txt')

    def pin(self, distribution: str) -> str:
        """Return the line of the stack's requirements that names ``distribution``."""
        with open(self.requirements(self.stack)) as file:
            return next(line.strip() for line in file if line.startswith(distribution))

    def installed(self, distribution: str) -> Optional[str]:
        """Return the installed version, from the name of a folder: this needs no new process."""
        name = distribution.replace('-', '_')
        site = os.path.join(self.path, 'lib', 'python3*', 'site-packages')
        found = glob.glob(os.path.join(site, name + '-*.dist-info'))
        return os.path.basename(found[0])[len(name) + 1 : -len('.dist-info')] if found else None

    def pip_install(self, message: str, *arguments: str, **variables: str) -> None:
        """Run ``pip install`` with its output in the log and a sign of life every half minute.

        ``variables`` are added to the process's environment. Raises SetupError with the end of the
        log when pip fails.
        """
        self.say(message)
        command = [self.python, '-m', 'pip', 'install', '--no-input', *arguments]
        with open(self.log, 'ab') as log:
            log.write(f'\n$ {" ".join(command)}\n'.encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', **variables},
            )
            status = self._wait(process)
        if status:
            with open(self.log, errors='replace') as log_text:
                tail = ''.join(log_text.readlines()[-LOG_TAIL_LINES:])
            raise SetupError(f'pip failed while {message}; the end of {self.log}:\n{tail}')

    def _wait(self, process: 'subprocess.Popen[bytes]') -> int:
        began = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(PROGRESS_SECONDS)
                except subprocess.TimeoutExpired:
                    self.say(f'  still at it after {time.monotonic() - began:.0f} s')
        except KeyboardInterrupt:
            process.terminate()
            raise
