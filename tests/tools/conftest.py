"""Tiny rows, dumped as a user's configs and trained once by tools/train.py."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
ROW = ROOT / 'configs/mask2former_r50_ade20k.py'
PANOPTIC = ROOT / 'configs/demo/mask2former_r18_facade-panoptic.py'
PICTURES = {'train': 4, 'val': 2, 'test': 2}


class Trained(NamedTuple):
    """``folder`` holds ``row.py``, its data, and after the training ``work_dirs/row``."""

    folder: Path
    config: Path
    checkpoint: Path
    output: str


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in the environment of the tests, one thread, all output together."""
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        'PATH': f'{scripts}{os.pathsep}{os.environ["PATH"]}',
        'OMP_NUM_THREADS': '1',
        **variables,
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def run_tool(name: str, *arguments: str | Path, cwd: Path) -> str:
    """The output of a tool that has to succeed."""
    done = run(sys.executable, TOOLS / name, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope='session')
def row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config file of a reduced row whose photos and label maps lie beside it."""
    from mmengine import Config

    from tests.reduced import reduce_config

    folder = tmp_path_factory.mktemp('tools')
    cfg = reduce_config(Config.fromfile(ROW), folder)
    cfg.pop('work_dir')
    path = folder / 'row.py'
    cfg.dump(path)
    return path


@pytest.fixture(scope='session')
def trained(row: Path) -> Trained:
    output = run_tool('train.py', row.name, cwd=row.parent)
    checkpoint = row.parent / 'work_dirs/row/iter_2.pth'
    assert checkpoint.is_file(), output
    return Trained(row.parent, row, checkpoint, output)


@pytest.fixture(scope='session')
def panoptic_row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The panoptic demo's config on a few of its photos, with a smaller model."""
    pytest.importorskip('mmdet')
    from mmengine import Config

    cfg = Config.fromfile(PANOPTIC)
    cfg.model.panoptic_head.update(num_queries=8, decoder={'num_layers': 1, 'ffn_dim': 64})
    for name, number in PICTURES.items():
        dataset = cfg[f'{name}_dataloader'].dataset
        dataset.update(data_root=str(ROOT / dataset.data_root), indices=number)
    cfg.train_dataloader.batch_size = 1
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    path = tmp_path_factory.mktemp('panoptic') / 'panoptic.py'
    cfg.dump(path)
    return path


@pytest.fixture(scope='session')
def trained_panoptic(panoptic_row: Path) -> Trained:
    output = run_tool('train.py', panoptic_row.name, cwd=panoptic_row.parent)
    checkpoint = panoptic_row.parent / 'work_dirs/panoptic/iter_2.pth'
    assert checkpoint.is_file(), output
    return Trained(panoptic_row.parent, panoptic_row, checkpoint, output)
