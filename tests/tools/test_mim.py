"""``mim train`` and ``mim test`` find our configs and tools, by path and by name."""

import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.tools.conftest import ROOT, TOOLS, Trained, foreign_file, metrics, run


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


def test_mmseg_tests_a_config_of_ours_on_a_file_of_its_own_head(trained: Trained, tmp_path):
    """The metrics are those of the training's validation, on the same images."""
    checkpoint = ['--checkpoint', foreign_file(trained, 'mmseg'), '--work-dir', tmp_path]
    output = mim('test', 'mmseg', trained.config.name, *checkpoint, cwd=trained.folder)
    assert "has the layout of MMSegmentation's own head: converted for decode_head" in output
    assert 'loading the checkpoint: all tensors matched' in output
    assert metrics(output) == metrics(trained.output)


# What mim calls MMDetection: the distribution.
MMDET = 'onedl-mmdetection' if has_distribution('onedl-mim') else 'mmdet'


def test_mmdet_trains_a_config_of_ours(trained_panoptic: Trained, tmp_path):
    arguments = ['--work-dir', tmp_path, '--cfg-options', *SHORT]
    mim('train', MMDET, trained_panoptic.config, *arguments, cwd=trained_panoptic.folder)
    assert (tmp_path / 'iter_1.pth').is_file()


def test_mmdet_tests_a_config_of_ours_on_an_official_file(trained_panoptic: Trained, tmp_path):
    """The metrics are those of the training's validation, on the same images."""
    checkpoint = foreign_file(trained_panoptic, 'detectron2')
    arguments = ['--checkpoint', checkpoint, '--work-dir', tmp_path]
    output = mim('test', MMDET, trained_panoptic.config, *arguments, cwd=trained_panoptic.folder)
    assert 'layout of the official code (Detectron2): converted for panoptic_head' in output
    assert 'loading the checkpoint: all tensors matched' in output
    found = metrics(output)
    assert found == metrics(trained_panoptic.output)
    assert {'mIoU', 'coco/segm_mAP', 'coco_panoptic/PQ'} <= found.keys()


@ONLY_ONEDL
def test_our_tools_train_through_mim(trained: Trained, tmp_path):
    """mim finds the tools of the editable installation."""
    arguments = ['--work-dir', tmp_path, '--cfg-options', *SHORT]
    output = mim('train', 'mmseg_m2f', trained.config, *arguments, cwd=trained.folder)
    script = re.search(r'Training command is \S+ (\S+)', output)[1]
    assert Path(script).resolve() == TOOLS / 'train.py'
    assert (tmp_path / 'iter_1.pth').is_file()


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """A folder with the package installed from a wheel."""
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('installed')
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    for name in ('mmseg_m2f', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    pip = [
        sys.executable,
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--no-build-isolation',
        '--no-index',
    ]
    done = run(*pip, '--target', target, source, cwd=source)
    assert done.returncode == 0, done.stdout
    return target


def test_the_wheel_ships_what_mim_reads(installed):
    mim_folder = installed / 'mmseg_m2f/.mim'
    assert (mim_folder / 'model-index.yml').is_file()
    for folder in ('configs', 'tools'):
        ours = {path.relative_to(ROOT / folder) for path in files_of(ROOT / folder)}
        assert {
            path.relative_to(mim_folder / folder) for path in files_of(mim_folder / folder)
        } == ours


def files_of(folder: Path) -> list[Path]:
    paths = [path for path in folder.rglob('*') if path.is_file()]
    return [path for path in paths if '__pycache__' not in path.parts]


@ONLY_UPSTREAM
def test_our_installed_tools_train_through_mim(trained: Trained, installed, tmp_path):
    arguments = ['--work-dir', tmp_path, '--cfg-options', *SHORT]
    command = ['mim', 'train', 'mmseg_m2f', trained.config, *arguments]
    done = run(*command, cwd=trained.folder, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout
    assert f'{installed}/mmseg_m2f/.mim/tools/train.py' in done.stdout
    assert (tmp_path / 'iter_1.pth').is_file()


@ONLY_UPSTREAM
def test_a_bare_name_is_enough(installed, tmp_path):
    """The row is found; without its data the run then stops with the folder it misses."""
    command = ['mim', 'train', 'mmseg_m2f', 'mask2former_r50_ade20k.py']
    done = run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode != 0
    assert '.mim/configs/mask2former_r50_ade20k.py instead' in done.stdout
    assert 'FileNotFoundError' in done.stdout
    assert 'data/ade/ADEChallengeData2016' in done.stdout
