"""C++ sources that are compiled on first use and kept in the user's cache."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger('mmseg_m2f')

_FLAGS = ('-O3', '-std=c++17', '-fPIC', '-shared')
# The code reads neither errno nor floating-point exceptions. Without them floor() and rounding are
# single instructions. None of these flags reorders sums.
_FLOATING_POINT = ('-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast')


class Library:
    """One C++ source with a C interface, built as a shared library.

    Args:
        name: stands in file names and messages.
        beside: the Python file next to the source; the source has its name, ending in ``.cpp``.
    """

    def __init__(self, name: str, beside: str) -> None:
        self.name = name
        self._source = Path(beside).with_suffix('.cpp')
        self._outcome: tuple[ctypes.CDLL | None, str | None] | None = None

    def why_not(self) -> str | None:
        """Return why there is no library, or None; compile it if needed. Log a reason once."""
        return self._load()[1]

    def loaded(self) -> ctypes.CDLL:
        """Return the library. Raises RuntimeError with the reason of ``why_not``."""
        library, objection = self._load()
        if library is None:
            raise RuntimeError(f'{self.name}: {objection}')
        return library

    def _load(self) -> tuple[ctypes.CDLL | None, str | None]:
        """Try once; return the library and None, or None and the reason."""
        if self._outcome is None:
            try:
                self._outcome = ctypes.CDLL(str(self._built())), None
            except (OSError, subprocess.SubprocessError) as error:
                objection = f'it could not be compiled ({_reason(error)})'
                logger.warning('%s: no compiled CPU code: %s', self.name, objection)
                self._outcome = None, objection
        return self._outcome

    def _built(self) -> Path:
        """Return the path of the library; compile it unless the cache has it."""
        # PyTorch has loaded OpenMP already; the library uses the same one.
        command = [_compiler(), *_FLAGS, *_FLOATING_POINT, _for_this_processor(), '-fopenmp']
        path = _cache() / f'{self.name}-{self._key(command)}.so'
        if not path.exists():
            logger.info('%s: compiling the CPU code (once, some seconds)', self.name)
            self._compile([*command, str(self._source)], path)
        return path

    def _key(self, command: list[str]) -> str:
        """Hash the source, the compiler, its flags and the processor."""
        version = subprocess.run([command[0], '--version'], capture_output=True, check=True).stdout
        parts = [self._source.read_bytes(), version, ' '.join(command).encode(), _processor()]
        return hashlib.sha256(b'\0'.join(parts)).hexdigest()[:16]

    @staticmethod
    def _compile(command: list[str], path: Path) -> None:
        # Written elsewhere and moved: other processes never see half a file.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            subprocess.run(
                [*command, '-o', str(part)],
                capture_output=True,
                check=True,
                text=True,
                timeout=300,
            )
            part.replace(path)


def _compiler() -> str:
    """Return the path of a C++ compiler. Raises FileNotFoundError if there is none."""
    names = [os.environ.get('CXX', ''), 'g++', 'clang++', 'c++']
    for name in filter(None, names):
        found = shutil.which(name)
        if found is not None:
            return found
    raise FileNotFoundError('no C++ compiler found: install g++ or clang++, or set CXX')


def _for_this_processor() -> str:
    return '-march=native' if platform.machine() in ('x86_64', 'AMD64') else '-mcpu=native'


@functools.cache
def _processor() -> bytes:
    """Describe the processor: a cluster may share one cache among different ones."""
    description = Path('/proc/cpuinfo')
    if not description.exists():
        return f'{platform.machine()} {platform.processor()}'.encode()
    lines = description.read_text(errors='replace').splitlines()
    return '\n'.join(
        line for line in sorted(set(lines)) if line.startswith(('model name', 'flags', 'Features'))
    ).encode()


def _cache() -> Path:
    """Return the user's cache folder. Others must not write there: its libraries are run."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    folder = Path(base) / 'mmseg_m2f'
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if hasattr(os, 'getuid') and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(f'{folder} belongs to somebody else or is writable by others')
    return folder


def _reason(error: Exception) -> str:
    """Return the compiler's first complaint, or else the error itself, as one line."""
    complaints = getattr(error, 'stderr', None) or str(error)
    lines = str(complaints).strip().splitlines()
    return next((line for line in lines if 'error' in line), lines[0] if lines else repr(error))
