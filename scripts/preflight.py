"""Checks of the machine before the set-up. Each raises SetupError: one sentence, with a remedy."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile

from environment import Environment, SetupError, succeeds

OLDEST_PYTHON = (3, 10)
# numpy 1, which upstream needs, has no wheels for Python 3.13.
NEWEST_PYTHON = {'onedl': (3, 13), 'openmmlab': (3, 12)}
# A finished environment with a CPU torch takes 3.3 GB; pip's cache and mmcv's build the rest.
DISK_GB = 7
PROGRAM = '#include <vector>\nint main() { return static_cast<int>(std::vector<int>().size()); }\n'


def check_python(stack: str) -> None:
    versions = (OLDEST_PYTHON, NEWEST_PYTHON[stack], sys.version_info[:2])
    if not versions[0] <= versions[2] <= versions[1]:
        oldest, newest, found = ('.'.join(map(str, version)) for version in versions)
        raise SetupError(
            f'the {stack} stack needs Python {oldest} to {newest}, but {sys.executable} is '
            f'Python {found}: name another one, as in "make PYTHON=python3.11 ..."'
        )


def check_disk(folder: str) -> None:
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free / 1e9
    if free < DISK_GB:
        raise SetupError(
            f'{DISK_GB} GB of free disk are needed (14 GB with a CUDA build of torch), but '
            f'{folder} has {free:.1f} GB: make room, or clone to another disk'
        )


def check_compiler() -> None:
    compiler = shlex.split(os.environ.get('CXX', '')) or ['c++']
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, 'try.cpp')
        with open(source, 'w') as file:
            file.write(PROGRAM)
        if not succeeds([*compiler, source, '-o', os.path.join(folder, 'try')]):
            raise SetupError(
                'a C++ compiler is needed to build the operators of mmcv, but '
                f'"{" ".join(compiler)}" does not compile: install one (Debian, Ubuntu: '
                'apt install g++), or set CXX'
            )
    if not os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')):
        raise SetupError(
            f'the C headers of {sys.executable} (Python.h) are needed to build the operators of '
            'mmcv: install them (Debian, Ubuntu: apt install python3-dev)'
        )


def check_network(environment: Environment) -> None:
    """Ask pip, not some host: a mirror or a folder of wheels serves as well."""
    with tempfile.TemporaryDirectory() as folder:
        command = [environment.python, '-m', 'pip', 'download', '--no-input', '--no-cache-dir']
        command += ['--no-deps', '--retries', '1', '--timeout', '20', '--dest', folder, 'packaging']
        if not succeeds(command):
            raise SetupError(
                'pip cannot fetch packages: connect to the network, or point pip at a mirror '
                '(PIP_INDEX_URL) or at a folder of wheels (PIP_NO_INDEX=1 PIP_FIND_LINKS=...)'
            )


def check_cuda_compiler(environment: Environment) -> None:
    """Check for nvcc if torch sees a GPU: mmcv then compiles CUDA code."""
    code = (
        'import torch; from torch.utils.cpp_extension import CUDA_HOME; '
        'print(torch.cuda.is_available() and not CUDA_HOME and torch.version.cuda)'
    )
    done = subprocess.run([environment.python, '-c', code], stdout=subprocess.PIPE)
    if done.returncode:
        raise SetupError(
            f'torch is installed but cannot be imported: remove {environment.path} and start again'
        )
    answer = done.stdout.decode().strip()
    if answer != 'False':
        raise SetupError(
            f'nvcc of CUDA {answer} is needed to build the operators of mmcv for the GPU of this '
            'machine: install the CUDA toolkit, or set CUDA_HOME to where it is'
        )
