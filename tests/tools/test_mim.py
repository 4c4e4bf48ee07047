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


IS_ONEDL = has_distribution('onedl-mim')
# What mim calls MMDetection: the distribution.
MMDET = 'onedl-mmdetection' if IS_ONEDL else 'mmdet'


@pytest.mark.parametrize(
    ('library', 'fixture', 'layout', 'said'),
    [
        ('mmseg', 'row', 'mmseg', "MMSegmentation's own head: converted for decode_head"),
        (
            MMDET,
            'panoptic_row',
            'detectron2',
            'the official code (Detectron2): converted for panoptic_head',
        ),
    ],
)
def test_a_config_of_ours_trains_and_a_foreign_file_is_tested(
    library, fixture, layout, said, request
):
    """The test has the metrics of the training's validation."""
    config = request.getfixturevalue(fixture)
    command = ('mim', 'train', library)
    if library == 'mmseg' and not IS_ONEDL:
        # Upstream's mim finds no config by its path through mmseg.
        command = (sys.executable, TOOLS / 'train.py')
    trained = train(config, 'work_dirs/mim', *command)
    options = ['--checkpoint', foreign_file(trained, layout), '--work-dir', 'work_dirs/mim']
    done = run('mim', 'test', library, config.name, *options, cwd=config.parent)
    assert done.returncode == 0, done.stdout
    assert f'has the layout of {said}' in done.stdout
    assert 'loading the checkpoint: all tensors matched' in done.stdout
    found = metrics(done.stdout)
    assert found == metrics(trained.output)
    assert library == 'mmseg' or {'mIoU', 'coco/segm_mAP', 'coco_panoptic/PQ'} <= found.keys()


@pytest.mark.skipif(not IS_ONEDL, reason='by path through the package mmseg: onedl-mim')
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
    options = ('--no-deps', '--no-build-isolation', '--no-index', '--target', target)
    done = run(sys.executable, '-m', 'pip', 'install', *options, source, cwd=source)
    assert done.returncode == 0, done.stdout
    return target


def files_of(folder: Path) -> set[Path]:
    paths = {path.relative_to(folder) for path in folder.rglob('*') if path.is_file()}
    return {path for path in paths if '__pycache__' not in path.parts}


def test_the_wheel_ships_what_mim_reads(installed):
    mim_folder = installed / 'mmseg_m2f/.mim'
    assert (mim_folder / 'model-index.yml').is_file()
    for folder in ('configs', 'tools'):
        assert files_of(mim_folder / folder) == files_of(ROOT / folder)


@pytest.mark.skipif(IS_ONEDL, reason="onedl-mim looks up names in OpenMMLab's packages only")
def test_our_installed_tools_train_through_mim_and_a_bare_name_is_enough(row, installed, tmp_path):
    """By its name a row is found; without its data the run stops with the folder it misses."""
    options = ['--cfg-options', 'train_cfg.max_iters=1', 'train_cfg.val_interval=9']
    command = ['mim', 'train', 'mmseg_m2f', row, '--work-dir', tmp_path, *options]
    done = run(*command, cwd=row.parent, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout
    assert f'{installed}/mmseg_m2f/.mim/tools/train.py' in done.stdout
    assert (tmp_path / 'iter_1.pth').is_file()
    command = ['mim', 'train', 'mmseg_m2f', 'mask2former_r50_ade20k.py']
    done = run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode != 0
    assert '.mim/configs/mask2former_r50_ade20k.py instead' in done.stdout
    assert 'FileNotFoundError' in done.stdout
    assert 'data/ade/ADEChallengeData2016' in done.stdout
