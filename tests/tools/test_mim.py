"""``mim train`` and ``mim test`` find our configs and tools, by path and by name."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.tools.conftest import TOOLS, Trained, run


def has_distribution(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


ONLY_ONEDL = pytest.mark.skipif(
    not has_distribution('onedl-mim'), reason='by path through the package mmseg: onedl-mim'
)
ONLY_UPSTREAM = pytest.mark.skipif(
    not has_distribution('openmim'), reason="onedl-mim looks up names in OpenMMLab's packages only"
)
SHORT = ['train_cfg.max_iters=1', 'train_cfg.val_interval=9']


def mim(*arguments, cwd) -> str:
    done = run('mim', *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


@ONLY_ONEDL
def test_mmseg_trains_a_config_of_ours(trained: Trained, tmp_path):
    arguments = ['--work-dir', tmp_path, '--cfg-options', *SHORT]
    mim('train', 'mmseg', trained.config, *arguments, cwd=trained.folder)
    assert (tmp_path / 'iter_1.pth').is_file()


@ONLY_ONEDL
def test_mmseg_tests_a_config_of_ours(trained: Trained, tmp_path):
    checkpoint = ['--checkpoint', trained.checkpoint, '--work-dir', tmp_path]
    output = mim('test', 'mmseg', trained.config.name, *checkpoint, cwd=trained.folder)
    assert 'mIoU' in output


def test_our_tools_train_through_mim(trained: Trained, tmp_path):
    arguments = ['--work-dir', tmp_path, '--cfg-options', *SHORT]
    output = mim('train', 'mmseg_m2f', trained.config, *arguments, cwd=trained.folder)
    script = re.search(r'Training command is \S+ (\S+)', output)[1]
    assert Path(script).resolve() == TOOLS / 'train.py'
    assert (tmp_path / 'iter_1.pth').is_file()


@ONLY_UPSTREAM
def test_a_bare_name_is_enough(tmp_path):
    """The row is found; without its data the run then stops with the folder it misses."""
    done = run('mim', 'train', 'mmseg_m2f', 'mask2former_r50_ade20k.py', cwd=tmp_path)
    assert 'configs/mask2former_r50_ade20k.py instead' in done.stdout
    assert 'data/ade/ADEChallengeData2016' in done.stdout
