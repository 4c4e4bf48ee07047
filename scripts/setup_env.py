"""Create the virtual environment of one stack, or finish one that was begun.

    python3 scripts/setup_env.py --stack onedl --venv .venv --torch 'torch==2.13.0'

Every step first looks at what is there, so an interrupted set-up resumes. A stamp in the
environment makes the next call return at once. What is missing is said in one sentence, with
exit status 1.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import sys
from typing import Dict, List, Optional

import preflight
from environment import ROOT, Environment, SetupError, succeeds

PIP = 'pip==26.3'
DEFAULT_TORCH = 'torch==2.13.0'
# For the tests, where torch brings none (a CUDA build brings its own).
TRITON = 'triton==3.9.0'
MMCV = {'onedl': 'onedl-mmcv', 'openmmlab': 'mmcv'}
BUILD_TIME = '5 to 15 minutes on 2 cores'


def stamp_path(environment: Environment) -> str:
    return os.path.join(environment.path, 'setup.json')


def read_stamp(environment: Environment) -> Dict[str, Optional[str]]:
    try:
        with open(stamp_path(environment)) as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return {}


def fingerprint(environment: Environment, torch: str) -> Dict[str, Optional[str]]:
    """Return what was asked for, and the two versions that compiled operators depend on."""
    names = ['build', environment.stack, 'constraints-' + environment.stack, 'test']
    digest = hashlib.sha256(ROOT.encode())
    for path in [*map(environment.requirements, names), os.path.join(ROOT, 'pyproject.toml')]:
        with open(path, 'rb') as file:
            digest.update(file.read())
    return {
        'torch_requirement': torch,
        'files': digest.hexdigest(),
        'torch': environment.installed('torch'),
        'mmcv': environment.installed(MMCV[environment.stack]),
    }


def create_venv(environment: Environment) -> None:
    if succeeds([environment.python, '-c', 'import pip']):
        return
    environment.say(f'creating {environment.path}')
    if not succeeds([sys.executable, '-m', 'venv', '--clear', environment.path]):
        raise SetupError(
            f'{sys.executable} cannot create {environment.path}: install its venv module '
            '(Debian, Ubuntu: apt install python3-venv)'
        )


def write_constraints(environment: Environment, *pins: str) -> None:
    with open(environment.requirements('constraints-' + environment.stack)) as file:
        tested = file.read()
    with open(environment.constraints, 'w') as file:
        file.write(tested + ''.join(pin + '\n' for pin in pins))


def install_torch(environment: Environment, torch: str) -> None:
    """Install torch and the build tools, then pin what was found: nothing may replace it."""
    write_constraints(environment)
    environment.pip_install(f'installing {PIP}', PIP)
    environment.pip_install(
        f'installing {torch} and the build tools',
        *shlex.split(torch),
        environment.pin('numpy'),
        *('-r', environment.requirements('build'), '-c', environment.constraints),
    )
    found = {name: environment.installed(name) for name in ('torch', 'torchvision', 'triton')}
    pins = [f'{name}=={version}' for name, version in found.items() if version]
    write_constraints(environment, *pins, *([] if found['triton'] else [TRITON]))


def operators_work(environment: Environment) -> bool:
    return succeeds([environment.python, os.path.join(ROOT, 'scripts', 'check_ops.py')])


def build_jobs() -> int:
    """Return the number of compilers: one per core, as far as memory reaches (2 GB each)."""
    memory_gb = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return max(1, min(os.cpu_count() or 1, int(memory_gb // 2)))


def install_mmcv(environment: Environment) -> None:
    """Install mmcv. If its operators do not work, compile them against the installed torch."""
    name = MMCV[environment.stack]
    pin = environment.pin(name + '==')
    variables = {
        'MMCV_WITH_OPS': '1',
        'MAX_JOBS': os.environ.get('MAX_JOBS', str(build_jobs())),
        # Debug information triples the objects and helps nobody here.
        'CFLAGS': os.environ.get('CFLAGS', '') + ' -g0',
    }
    arguments = ['--no-build-isolation', '-c', environment.constraints, pin]
    preflight.check_cuda_compiler(environment)
    if environment.installed(name) is None:
        message = f'installing {pin} (its operators compile for {BUILD_TIME}, unless pip kept them)'
        environment.pip_install(message, *arguments, **variables)
    if not operators_work(environment):
        preflight.check_compiler()
        rebuild = ['--no-cache-dir', '--force-reinstall', '--no-deps', '--no-binary', name]
        message = f'compiling {pin} anew: its operators do not run with this torch ({BUILD_TIME})'
        environment.pip_install(message, *rebuild, *arguments, **variables)
        if not operators_work(environment):
            raise SetupError(
                f'the operators of mmcv were compiled but do not run: see why with '
                f'"{environment.python} {os.path.join(ROOT, "scripts", "check_ops.py")}"'
            )
    environment.say('the compiled operators of mmcv work')


def install_rest(environment: Environment) -> None:
    stack, test = environment.requirements(environment.stack), environment.requirements('test')
    common = ['--no-build-isolation', '-c', environment.constraints]
    environment.pip_install(
        f'installing the {environment.stack} stack and the test tools',
        *(*common, '-r', stack, '-r', test),
    )
    # onedl-mim looks for the folder mmseg_m2f beside the metadata, which only this mode offers.
    editable = ['-e', ROOT, '--config-settings', 'editable_mode=compat', '--no-deps']
    environment.pip_install('installing this package, editable', *common, *editable)


def set_up(environment: Environment, torch: str) -> None:
    if read_stamp(environment) == fingerprint(environment, torch):
        return
    is_new = environment.installed(MMCV[environment.stack]) is None
    if is_new:
        preflight.check_compiler()
        preflight.check_disk(environment.path)
    create_venv(environment)
    if is_new:
        preflight.check_network(environment)
    install_torch(environment, torch)
    install_mmcv(environment)
    install_rest(environment)
    with open(stamp_path(environment), 'w') as file:
        json.dump(fingerprint(environment, torch), file, indent=2)
    environment.say(f'{environment.path} is ready')


def parse_arguments(arguments: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Create or finish the environment of a stack.')
    parser.add_argument('--stack', choices=sorted(MMCV), default='onedl')
    parser.add_argument('--venv', default=os.path.join(ROOT, '.venv'))
    parser.add_argument(
        '--torch',
        default='',
        help=f'what pip shall install as torch; default: as last time, at first {DEFAULT_TORCH}',
    )
    return parser.parse_args(arguments)


def main(arguments: List[str]) -> int:
    options = parse_arguments(arguments)
    environment = Environment(options.venv, options.stack)
    torch = options.torch or read_stamp(environment).get('torch_requirement') or DEFAULT_TORCH
    try:
        preflight.check_python(environment.stack)
        os.makedirs(environment.path, exist_ok=True)
        # Two set-ups of one environment at a time would spoil each other: the second one waits.
        lock = os.open(environment.path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        set_up(environment, torch)
    except SetupError as error:
        print(f'set-up stopped: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('set-up interrupted: the same command continues it', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
