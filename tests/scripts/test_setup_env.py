"""The set-up says in one sentence what is missing, and does nothing twice."""

import ast
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / 'scripts'


@pytest.fixture
def setup_env(monkeypatch):
    """The script, which imports its neighbors by their bare names."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import setup_env

    yield setup_env
    for name in ('environment', 'preflight', 'setup_env'):
        sys.modules.pop(name)


@pytest.fixture
def environment(setup_env, tmp_path):
    """An environment that looks finished but for its stamp."""
    for name in ('torch-2.13.0+cpu.dist-info', 'onedl_mmcv-2.3.6.dist-info'):
        (tmp_path / 'lib/python3.11/site-packages' / name).mkdir(parents=True)
    found = setup_env.Environment(str(tmp_path), 'onedl')
    found.python = sys.executable
    return found


@pytest.fixture
def refused(setup_env):
    """Call a check that has to fail, and return its one sentence."""

    def call(check, *arguments):
        with pytest.raises(setup_env.SetupError) as error:
            check(*arguments)
        assert '\n' not in str(error.value)
        return str(error.value)

    return call


def test_versions_of_python(setup_env, refused, monkeypatch):
    check = setup_env.preflight.check_python
    for stack, newest in (('onedl', 13), ('openmmlab', 12)):
        for minor in (9, newest + 1):
            monkeypatch.setattr(sys, 'version_info', (3, minor, 0))
            assert f'needs Python 3.10 to 3.{newest}' in refused(check, stack)
        monkeypatch.setattr(sys, 'version_info', (3, newest, 0))
        check(stack)


def test_no_compiler_no_disk_no_network_and_a_failing_pip(
    setup_env, environment, refused, monkeypatch, tmp_path
):
    checks = setup_env.preflight
    for compiler in ('false', 'no-such-compiler'):
        monkeypatch.setenv('CXX', compiler)
        assert f'"{compiler}" does not compile' in refused(checks.check_compiler)
    usage = namedtuple('usage', 'total used free')(10**12, 10**12, 10**9)
    monkeypatch.setattr(checks.shutil, 'disk_usage', lambda folder: usage)
    sentence = refused(checks.check_disk, str(tmp_path / 'not/there/yet'))
    assert '7 GB of free disk are needed' in sentence
    assert f'{tmp_path} has 1.0 GB' in sentence
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    assert 'pip cannot fetch packages' in refused(checks.check_network, environment)
    with pytest.raises(setup_env.SetupError, match='no such option: --nonsense'):
        environment.pip_install('trying nonsense', '--nonsense')


def test_a_machine_with_a_gpu_needs_nvcc(setup_env, environment, refused, tmp_path):
    python = tmp_path / 'python'
    environment.python = str(python)
    for answer, message in (('echo 12.8', 'nvcc of CUDA 12.8 is needed'), ('exit 1', 'imported')):
        python.write_text(f'#!/bin/sh\n{answer}\n')
        python.chmod(0o755)
        assert message in refused(setup_env.preflight.check_cuda_compiler, environment)
    python.write_text('#!/bin/sh\necho False\n')
    setup_env.preflight.check_cuda_compiler(environment)


def test_a_finished_environment_is_left_alone_and_another_torch_noticed(
    setup_env, environment, monkeypatch, tmp_path
):
    stamp = setup_env.fingerprint(environment, 'torch==2.13.0')
    (tmp_path / 'setup.json').write_text(json.dumps(stamp))
    monkeypatch.setattr(setup_env, 'create_venv', lambda _: pytest.fail('began anew'))
    setup_env.set_up(environment, 'torch==2.13.0')
    [torch] = tmp_path.rglob('torch-2.13.0+cpu.dist-info')
    torch.rename(torch.with_name('torch-2.11.0.dist-info'))
    assert setup_env.fingerprint(environment, 'torch==2.13.0') != setup_env.read_stamp(environment)


def test_broken_operators_are_compiled_anew(setup_env, environment, monkeypatch):
    """Pip may keep a build against another torch: it is installed, tried and replaced."""
    answers, calls = iter([False, True]), []
    monkeypatch.setattr(setup_env, 'operators_work', lambda _: next(answers))
    monkeypatch.setattr(setup_env.preflight, 'check_cuda_compiler', lambda _: None)
    monkeypatch.setattr(environment, 'pip_install', lambda *args, **_: calls.append(args))
    setup_env.install_mmcv(environment)
    assert len(calls) == 1
    assert {'--no-cache-dir', '--force-reinstall', '--no-binary'} <= set(calls[0])


@pytest.mark.parametrize(('brought', 'pinned'), [(None, '3.9.0'), ('3.7.1', '3.7.1')])
def test_triton_is_ours_only_where_torch_brings_none(
    setup_env, environment, monkeypatch, tmp_path, brought, pinned
):
    monkeypatch.setattr(environment, 'pip_install', lambda *arguments, **variables: None)
    monkeypatch.setattr(environment, 'installed', {'torch': '2.13.0', 'triton': brought}.get)
    setup_env.install_torch(environment, 'torch')
    lines = (tmp_path / 'constraints.txt').read_text().splitlines()
    assert [line for line in lines if line.startswith('triton')] == [f'triton=={pinned}']


def test_python_of_3_8_can_read_the_scripts():
    for name in ('setup_env', 'environment', 'preflight'):
        ast.parse((SCRIPTS / f'{name}.py').read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ('target', 'task', 'message'),
    [
        ('setup', 'panoptic', "set-up stopped: no 'no-such-python' here"),
        *(('demo', task, 'TASK must be') for task in ('xyz', 'panoptic instance', '$(PYTHON)', '')),
        *(('check-task', task, '') for task in ('panoptic', 'instance', 'semantic')),
    ],
)
def test_make_refuses_an_interpreter_and_a_task_before_the_set_up(target, task, message):
    done = subprocess.run(
        ['make', target, 'PYTHON=no-such-python'],
        cwd=ROOT,
        env={'PATH': os.environ['PATH'], 'TASK': task},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert bool(done.returncode) == bool(message)
    assert message in done.stderr
    assert target == 'setup' or 'set-up stopped' not in done.stderr
