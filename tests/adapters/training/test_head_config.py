"""The head's config is saved with its weights, and a difference at loading is reported."""

import json
from pathlib import Path

import pytest
import torch

from mmseg_m2f.adapters.training.head_config import head_config_differences
from tests.adapters.toy_runner import toy_runner

CONFIG = {'num_classes': 2, 'decoder': {'num_layers': 9, 'sizes': [1, 2]}}


def test_it_is_saved_and_another_one_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runner(tmp_path, 'save').train()
    assert json.loads((tmp_path / 'head_config.json').read_text()) == CONFIG
    file = tmp_path / 'iter_6.pth'
    assert torch.load(file, weights_only=False)['meta']['head_config'] == CONFIG

    runner = toy_runner(tmp_path / 'load', 'load')
    lines: list[str] = []
    monkeypatch.setattr(runner.logger, 'warning', lines.append)
    runner.load_checkpoint(str(file))
    assert lines == []
    runner.model.config = {'num_classes': 3, 'decoder': {'num_layers': 9, 'sizes': (1, 2)}}
    runner.load_checkpoint(str(file))
    assert len(lines) == 1
    assert 'num_classes = 2 in the config of the head, this model has 3' in lines[0]


def test_differences_name_every_key() -> None:
    saved = {'a': {'b': 1, 'c': (1, 2)}, 'gone': None, 'same': {}}
    config = {'a': {'b': 2, 'c': [1, 2]}, 'new': {'x': 0}, 'same': {}}
    assert head_config_differences(saved, config) == [
        ('a.b', 1, 2),
        ('new.x', '(not set)', 0),
        ('gone', None, '(not set)'),
    ]
