"""``mim train`` and ``mim test`` find our configs and tools, by path and by name."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from tests.tools.conftest import ROOT, TOOLS, foreign_file, metrics, run, train


def has_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


ONLY_ONEDL = pytest.mark.skipif(
    not has_distribution('onedl-mim'), reason='by path through the package mmseg: onedl-mim'
)
ONLY_UPSTREAM = pytest.mark.skipif(
    not has_distribution('openmim'), reason="onedl-mim looks up names in OpenMMLab's packages only"
)


def mim(*arguments, cwd) -> str:
    done = run('mim', *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_mmseg_trains_and_tests_a_config_of_ours(row: Path, row_weights: Path):
    """The test of a file of mmseg's own head has the metrics of the training's validation."""
    # Upstream's mim finds no config by its path through mmseg.
    ours = (sys.executable, TOOLS / 'train.py')
    command = ('mim', 'train', 'mmseg') if has_distribution('onedl-mim') else ours
    trained = train(row, row_weights, 'work_dirs/mim', *command)
    checkpoint = ['--checkpoint', foreign_file(trained, 'mmseg'), '--work-dir', 'work_dirs/mim']
    output = mim('test', 'mmseg', row.name, *checkpoint, cwd=row.parent)
    assert "has the layout of MMSegmentation's own head: converted for decode_head" in output
    assert 'loading the checkpoint: all tensors matched' in output
    assert metrics(output) == metrics(trained.output)


# What mim calls MMDetection: the distribution.
MMDET = 'onedl-mmdetection' if has_distribution('onedl-mim') else 'mmdet'


def test_mmdet_trains_and_tests_a_config_of_ours(panoptic_row: Path, panoptic_weights: Path):
    """The test of an official file has the metrics of the training's validation."""
    folder = panoptic_row.parent
    trained = train(panoptic_row, panoptic_weights, 'work_dirs/mim', 'mim', 'train', MMDET)
    checkpoint = foreign_file(trained, 'detectron2')
    arguments = ['--checkpoint', checkpoint, '--work-dir', 'work_dirs/mim']
    output = mim('test', MMDET, panoptic_row.name, *arguments, cwd=folder)
    assert 'layout of the official code (Detectron2): converted for panoptic_head' in output
    assert 'loading the checkpoint: all tensors matched' in output
    found = metrics(output)
    assert found == metrics(trained.output)
    assert {'mIoU', 'coco/segm_mAP', 'coco_panoptic/PQ'} <= found.keys()


@ONLY_ONEDL
def test_mim_finds_the_tools_of_the_editable_installation(row: Path, monkeypatch):
    """Only the command is looked at: that the tool trains is tested elsewhere."""
    from mim.commands import train

    started = []
    monkeypatch.setattr(subprocess, 'check_call', lambda command, **_: started.append(command) or 0)
    train('mmseg_m2f', str(row), gpus=0, other_args=('--work-dir', 'out'))
    [[_, script, *arguments]] = started
    installed_from = json.loads(distribution('mmseg-m2f').read_text('direct_url.json'))['url']
    assert Path(script).as_uri() == f'{installed_from}/tools/train.py'
    assert arguments == [str(row), '--launcher', 'none', '--work-dir', 'out']


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """A folder with the package installed from a wheel."""
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('installed')
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    for name in ('mmseg_m2f', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    pip = (sys.executable, '-m', 'pip', 'install')
    options = ('--no-deps', '--no-build-isolation', '--no-index')
    done = run(*pip, *options, '--target', target, source, cwd=source)
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
def test_our_installed_tools_train_through_mim(row: Path, installed, tmp_path):
    options = ['--cfg-options', 'train_cfg.max_iters=1', 'train_cfg.val_interval=9']
    command = ['mim', 'train', 'mmseg_m2f', row, '--work-dir', tmp_path, *options]
    done = run(*command, cwd=row.parent, PYTHONPATH=str(installed))
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
