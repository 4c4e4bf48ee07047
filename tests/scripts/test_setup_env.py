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
def scripts(monkeypatch):
    """The modules of ``scripts/``, which import each other by their bare names."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import environment
    import preflight
    import setup_env

    yield namedtuple('Scripts', 'environment preflight setup_env')(
        environment, preflight, setup_env
    )
    for name in ('environment', 'preflight', 'setup_env'):
        sys.modules.pop(name)


def one_sentence(error):
    text = str(error.value)
    assert '\n' not in text
    return text


@pytest.mark.parametrize(
    ('version', 'stack', 'needed'),
    [
        ((3, 9, 18), 'onedl', '3.10 to 3.13'),
        ((3, 14, 0), 'onedl', '3.10 to 3.13'),
        ((3, 13, 0), 'openmmlab', '3.10 to 3.12'),
        ((3, 13, 0), 'onedl', None),
    ],
)
def test_versions_of_python(scripts, monkeypatch, version, stack, needed):
    monkeypatch.setattr(sys, 'version_info', version)
    if needed is None:
        scripts.preflight.check_python(stack)
        return
    with pytest.raises(scripts.environment.SetupError) as error:
        scripts.preflight.check_python(stack)
    assert f'needs Python {needed}' in one_sentence(error)


@pytest.mark.parametrize('compiler', ['false', 'no-such-compiler'])
def test_no_compiler(scripts, monkeypatch, compiler):
    monkeypatch.setenv('CXX', compiler)
    with pytest.raises(scripts.environment.SetupError) as error:
        scripts.preflight.check_compiler()
    assert f'"{compiler}" does not compile' in one_sentence(error)


def test_disk_is_full(scripts, monkeypatch, tmp_path):
    usage = namedtuple('usage', 'total used free')(10**12, 10**12, 10**9)
    monkeypatch.setattr(scripts.preflight.shutil, 'disk_usage', lambda folder: usage)
    with pytest.raises(scripts.environment.SetupError) as error:
        scripts.preflight.check_disk(str(tmp_path / 'not/there/yet'))
    assert '7 GB of free disk are needed' in one_sentence(error)
    assert f'{tmp_path} has 1.0 GB' in one_sentence(error)


@pytest.fixture
def environment(scripts, tmp_path):
    found = scripts.environment.Environment(str(tmp_path), 'onedl')
    found.python = sys.executable
    return found


def test_no_network(scripts, environment, monkeypatch, tmp_path):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    with pytest.raises(scripts.environment.SetupError) as error:
        scripts.preflight.check_network(environment)
    assert 'pip cannot fetch packages' in one_sentence(error)


def test_failing_pip_shows_the_end_of_its_log(scripts, environment):
    with pytest.raises(scripts.environment.SetupError, match='no such option: --nonsense'):
        environment.pip_install('trying nonsense', '--nonsense')


@pytest.fixture
def site(environment, tmp_path):
    """The packages of an environment that looks finished but for its stamp."""
    site = tmp_path / 'lib/python3.11/site-packages'
    for name in ('torch-2.13.0+cpu.dist-info', 'onedl_mmcv-2.3.6.dist-info'):
        (site / name).mkdir(parents=True)
    return site


def test_a_finished_environment_is_left_alone_and_another_torch_noticed(
    scripts, environment, site, monkeypatch, tmp_path
):
    stamp = scripts.setup_env.fingerprint(environment, 'torch==2.13.0')
    (tmp_path / 'setup.json').write_text(json.dumps(stamp))
    monkeypatch.setattr(scripts.setup_env, 'create_venv', lambda _: pytest.fail('began anew'))
    scripts.setup_env.set_up(environment, 'torch==2.13.0')
    (site / 'torch-2.13.0+cpu.dist-info').rename(site / 'torch-2.11.0.dist-info')
    found = scripts.setup_env.fingerprint(environment, 'torch==2.13.0')
    assert found != scripts.setup_env.read_stamp(environment)


@pytest.mark.usefixtures('site')
def test_broken_operators_are_compiled_anew(scripts, environment, monkeypatch):
    """Pip may keep a build against another torch: it is installed, tried and replaced."""
    answers = iter([False, True])
    calls = []
    monkeypatch.setattr(scripts.setup_env, 'operators_work', lambda _: next(answers))
    monkeypatch.setattr(scripts.preflight, 'check_cuda_compiler', lambda _: None)
    monkeypatch.setattr(environment, 'pip_install', lambda *args, **_: calls.append(args))
    scripts.setup_env.install_mmcv(environment)
    assert len(calls) == 1
    assert {'--no-cache-dir', '--force-reinstall', '--no-binary'} <= set(calls[0])


def test_python_of_3_8_can_read_the_scripts():
    for path in SCRIPTS.glob('*.py'):
        ast.parse(path.read_text(), feature_version=(3, 8))


def make(*arguments, **variables):
    return subprocess.run(
        ['make', *arguments],
        cwd=ROOT,
        env={'PATH': os.environ['PATH'], **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_make_names_a_missing_interpreter():
    result = make('setup', 'PYTHON=no-such-python')
    assert result.returncode
    assert "set-up stopped: no 'no-such-python' here" in result.stderr


@pytest.mark.parametrize('task', ['xyz', 'panoptic instance', '$(PYTHON)', ''])
def test_an_unknown_task_of_the_demo_is_refused_before_the_set_up(task):
    result = make('demo', 'PYTHON=no-such-python', TASK=task)
    assert result.returncode
    assert 'TASK must be panoptic, instance or semantic' in result.stderr
    assert 'set-up stopped' not in result.stderr


@pytest.mark.parametrize('task', ['panoptic', 'instance', 'semantic'])
def test_the_tasks_of_the_demo_pass(task):
    assert make('check-task', TASK=task).returncode == 0


@pytest.mark.parametrize(
    ('brought', 'pinned'), [(None, 'triton==3.9.0'), ('3.7.1', 'triton==3.7.1')]
)
def test_triton_is_ours_only_where_torch_brings_none(
    scripts, environment, monkeypatch, tmp_path, brought, pinned
):
    monkeypatch.setattr(environment, 'pip_install', lambda *arguments, **variables: None)
    monkeypatch.setattr(environment, 'installed', {'torch': '2.13.0', 'triton': brought}.get)
    scripts.setup_env.install_torch(environment, 'torch')
    lines = (tmp_path / 'constraints.txt').read_text().splitlines()
    assert [line for line in lines if line.startswith('triton')] == [pinned]
