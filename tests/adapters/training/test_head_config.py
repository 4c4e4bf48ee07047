"""The head's config is saved with its weights, and a difference at loading is reported."""

import json

import torch

from tests.adapters.toy_runner import Toy, toy_runner

CONFIG = {'num_classes': 2, 'decoder': {'num_layers': 9, 'sizes': [1, 2]}}
OTHER = {'num_classes': 3, 'decoder': {'sizes': (1, 2)}, 'new': {'x': 0}}
HOOK = {'type': 'mmseg_m2f.HeadConfigHook'}


def test_it_is_saved_and_another_one_warns(tmp_path):
    runner = toy_runner(tmp_path, 'save', HOOK, model=Toy(**CONFIG))
    runner.train()
    assert json.loads((tmp_path / 'head_config.json').read_text()) == CONFIG
    file = tmp_path / 'iter_6.pth'
    assert torch.load(file, weights_only=False)['meta']['head_config'] == CONFIG
    runner.load_checkpoint(str(file))
    assert runner.warned == []
    other = toy_runner(tmp_path / 'load', 'load', HOOK, model=Toy(**OTHER))
    other.load_checkpoint(str(file))
    differences = [('num_classes', 2, 3), ('new.x', '(not set)', 0)]
    differences.append(('decoder.num_layers', 9, '(not set)'))
    assert other.warned == [
        f'the checkpoint was made with {key} = {saved} in the config of the head, this model has '
        f'{now}'
        for key, saved, now in differences
    ]
