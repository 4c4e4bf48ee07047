"""Small configs, written as a user's files and trained once by tools/train.py."""

import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
ROW = ROOT / 'configs/mask2former_r50_ade20k.py'
PANOPTIC = ROOT / 'configs/demo/mask2former_r18_facade-panoptic.py'
IMAGES = {'train': 4, 'val': 2, 'test': 2}


class Trained(NamedTuple):
    """``folder`` holds the config and its data, ``output`` is what the training printed."""

    folder: Path
    config: Path
    checkpoint: Path
    output: str


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the environment of the tests with one thread; errors join the output."""
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
    """Run a tool that has to succeed, and return its output."""
    done = run(sys.executable, TOOLS / name, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


def metrics(output: str) -> dict[str, str]:
    """Return the metrics of the last test or validation; those of labels must not be 0."""
    found = dict(re.findall(r'(aAcc|mIoU|mAcc|coco\S+): (-?[\d.]+)', output))
    for name in ('aAcc', 'mIoU', 'mAcc'):
        assert float(found[name]) > 0, output
    return found


def write_weights(config: Path, photo: Path, present: Sequence[int]) -> Path:
    """Write a checkpoint beside ``config`` that finds several of the classes in ``photo``.

    A model that is new or trained for two iterations is right nowhere, so its metrics tell nothing.
    """
    from mmengine import Config
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.structures import BaseDataElement

    from mmseg_m2f.adapters.checkpoints.convert_on_load import head_name
    from tests.parity.parity_weights import tell_queries_apart

    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    with Image.open(photo) as image:
        image = np.array(image)[..., ::-1].copy()
    inputs = [torch.from_numpy(image).permute(2, 0, 1)]
    tell_queries_apart(model, {'inputs': inputs, 'data_samples': [BaseDataElement()]})
    class_embed = getattr(model, head_name(model)).decoder.class_embed
    with torch.no_grad():
        class_embed.bias[present] += 20
    path = config.with_suffix('.pth')
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return path


def train(config: Path, work_dir: str, *command: str | Path) -> Trained:
    """Train by a command that has to succeed, from the weights beside ``config``."""
    folder = config.parent
    start = config.with_suffix('.pth')
    options = ['--work-dir', work_dir, '--cfg-options', f'load_from={start}']
    done = run(*command, config.name, *options, cwd=folder)
    checkpoint = folder / work_dir / 'iter_2.pth'
    assert done.returncode == 0, done.stdout
    assert checkpoint.is_file(), done.stdout
    return Trained(folder, config, checkpoint, done.stdout)


def foreign_file(trained: Trained, layout: str) -> Path:
    """Write the trained weights as another project saves them."""
    from mmseg_m2f.adapters.checkpoints.convert_file import SUFFIXES, convert_checkpoint

    path = trained.checkpoint.with_name(f'{layout}{SUFFIXES[layout]}')
    if not path.is_file():
        convert_checkpoint(trained.checkpoint, path, target=layout)
    return path


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a script in this process, in the folder ``tmp_path``, and return its output."""

    def run_here(script: Path, *arguments: str | Path) -> str:
        monkeypatch.chdir(tmp_path)
        # The script finds its neighbors, as when it is run.
        monkeypatch.syspath_prepend(str(script.parent))
        monkeypatch.setattr(sys, 'argv', [script.name, *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            runpy.run_path(str(script), run_name='__main__')
        return capfd.readouterr().out

    return run_here


@pytest.fixture
def call_runner(call: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """Run a tool that builds a runner; ``settings`` join its ``--cfg-options``."""

    def run_here(script: Path, *arguments: str | Path, settings: Sequence[str] = ()) -> str:
        # MMEngine keeps a logger and a visualizer of each name for the life of the process.
        names = [f'{key}={tmp_path}' for key in ('experiment_name', 'visualizer.name')]
        return call(script, *arguments, '--cfg-options', *names, *settings)

    return run_here


@pytest.fixture(scope='session')
def row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the config of a reduced row, with photos, label maps and weights beside it."""
    from mmengine import Config

    from mmseg_m2f.metadata import load_metadata
    from tests.layouts import classes_of
    from tests.reduced import reduce_config

    folder = tmp_path_factory.mktemp('tools')
    cfg = reduce_config(Config.fromfile(ROW), folder)
    cfg.pop('work_dir')
    path = folder / 'row.py'
    cfg.dump(path)
    photo = next((folder / 'images/validation').iterdir())
    write_weights(path, photo, classes_of(load_metadata('ade20k')))
    return path


@pytest.fixture(scope='session')
def trained(row: Path) -> Trained:
    return train(row, 'work_dirs/row', sys.executable, TOOLS / 'train.py')


@pytest.fixture(scope='session')
def panoptic_row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the panoptic demo's config, weights beside it, with few photos and a smaller model."""
    pytest.importorskip('mmdet')
    from mmengine import Config

    cfg = Config.fromfile(PANOPTIC)
    cfg.model.panoptic_head.update(num_queries=8, decoder={'num_layers': 1, 'ffn_dim': 64})
    for name, number in IMAGES.items():
        dataset = cfg[f'{name}_dataloader'].dataset
        dataset.update(data_root=str(ROOT / dataset.data_root), indices=number)
    cfg.train_dataloader.batch_size = 1
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    path = tmp_path_factory.mktemp('panoptic') / 'panoptic.py'
    cfg.dump(path)
    photo = next((ROOT / 'data/tiny/facade/img/val').iterdir())
    write_weights(path, photo, range(cfg.model.panoptic_head.num_classes))
    return path


@pytest.fixture(scope='session')
def trained_panoptic(panoptic_row: Path) -> Trained:
    return train(panoptic_row, 'work_dirs/panoptic', sys.executable, TOOLS / 'train.py')
