"""Small configs, written as a user's files and trained once by tools/train.py."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
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
    """``folder`` holds ``row.py``, its data, and after the training ``work_dirs/row``."""

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


def foreign_file(trained: Trained, layout: str) -> Path:
    """Write the trained weights as another project saves them."""
    from mmseg_m2f.adapters.checkpoints.convert_file import SUFFIXES, convert_checkpoint

    path = trained.folder / f'{layout}{SUFFIXES[layout]}'
    if not path.is_file():
        convert_checkpoint(trained.checkpoint, path, target=layout)
    return path


@pytest.fixture(scope='session')
def row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the config of a reduced row, with photos and label maps beside it."""
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
    from mmseg_m2f.metadata import load_metadata
    from tests.layouts import classes_of

    photo = next((row.parent / 'images/validation').iterdir())
    start = write_weights(row, photo, classes_of(load_metadata('ade20k')))
    output = run_tool('train.py', row.name, '--cfg-options', f'load_from={start}', cwd=row.parent)
    checkpoint = row.parent / 'work_dirs/row/iter_2.pth'
    assert checkpoint.is_file(), output
    return Trained(row.parent, row, checkpoint, output)


@pytest.fixture(scope='session')
def panoptic_row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the panoptic demo's config with a few of its photos and a smaller model."""
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
    return path


@pytest.fixture(scope='session')
def trained_panoptic(panoptic_row: Path) -> Trained:
    from tests.layouts import NUM_STUFF, NUM_THINGS

    folder = panoptic_row.parent
    photo = next((ROOT / 'data/tiny/facade/img/val').iterdir())
    start = write_weights(panoptic_row, photo, range(NUM_THINGS + NUM_STUFF))
    options = ['--cfg-options', f'load_from={start}']
    output = run_tool('train.py', panoptic_row.name, *options, cwd=folder)
    checkpoint = folder / 'work_dirs/panoptic/iter_2.pth'
    assert checkpoint.is_file(), output
    return Trained(folder, panoptic_row, checkpoint, output)
