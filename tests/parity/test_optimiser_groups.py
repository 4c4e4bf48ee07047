"""Learning rate and weight decay of every parameter of real rows, against the official rule.

``python -m tests.parity.test_optimiser_groups`` records what the rule of this file (not our
constructor) says of today's models in ``tests/data/optimiser_groups.json``.
"""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from tests.configs.rows import load, parse
from tests.configs.test_rows import build

GOLDEN = Path(__file__).parents[1] / 'data/optimiser_groups.json'
# Of each kind of backbone, and of ResNet each kind of norm, a segmentor and a detector.
ROWS = {
    'mask2former_r50_ade20k': 'r50 frozen',
    'mask2former_r50_coco-panoptic': 'r50 frozen',
    'mask2former_r50_cityscapes': 'r50 sync',
    'mask2former_r50_cityscapes-panoptic': 'r50 sync',
    'mask2former_swin-t_ade20k': 'swin-t',
    'mask2former_swin-t_coco-panoptic': 'swin-t',
    'mask2former_swin-l_ade20k': 'swin-l',
    'mask2former_swin-l_coco-panoptic': 'swin-l',
}
OFFICIAL_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
LR, BACKBONE_LR, DECAY = 1e-4, 1e-5, 0.05

# Part of the model -> what it learns with -> names below that part.
Groups = dict[str, list[str]]


def official_group(module: nn.Module, name: str) -> str:
    """Return the settings of the parameter ``name`` that ``module`` itself owns."""
    lr = BACKBONE_LR if 'backbone' in name else LR
    table = 'relative_position_bias_table' in name or 'absolute_pos_embed' in name
    undecayed = table or isinstance(module, (*OFFICIAL_NORMS, nn.Embedding))
    return group_name(lr, 0.0 if undecayed else DECAY)


def group_name(lr: float, decay: float) -> str:
    return f'lr {lr:.3g}, decay {decay:.3g}'


def official_groups(model: nn.Module) -> dict[str, Groups]:
    """Walks over the modules; parameters that do not learn are listed as frozen."""
    found: dict[str, Groups] = {'backbone': {}, 'head': {}}
    for path, module in model.named_modules():
        for own, param in module.named_parameters(recurse=False):
            name = f'{path}.{own}'
            group = official_group(module, name) if param.requires_grad else 'frozen'
            put(found, name, group)
    return in_order(found)


def put(found: dict[str, Groups], name: str, group: str) -> None:
    part, below = name.split('.', 1)
    part = {'decode_head': 'head', 'panoptic_head': 'head'}.get(part, part)
    found[part].setdefault(group, []).append(below)


def in_order(found: dict[str, Groups]) -> dict[str, Groups]:
    return {
        part: {group: sorted(names) for group, names in sorted(groups.items())}
        for part, groups in found.items()
    }


@pytest.fixture(scope='module', params=ROWS)
def row(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope='module')
def model(row: str) -> nn.Module:
    """Weights stay as allocated: one model at a time."""
    return build(row)


@cache
def golden() -> dict[str, dict[str, Groups]]:
    return json.loads(GOLDEN.read_text())


def recorded(row: str) -> dict[str, Groups]:
    """The head is the same in all rows: what it says and how many queries it has is no module."""
    return {'backbone': golden()['backbones'][ROWS[row]], 'head': golden()['head']}


def test_the_constructor_of_the_row_gives_the_recorded_groups(row: str, model: nn.Module) -> None:
    settings = copy.deepcopy(load(row).optim_wrapper.to_dict())
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        {
            'type': settings.pop('constructor'),
            'paramwise_cfg': settings.pop('paramwise_cfg'),
            'optim_wrapper_cfg': settings,
        }
    )
    optimizer = constructor(model).optimizer
    assert (optimizer.defaults['betas'], optimizer.defaults['eps']) == ((0.9, 0.999), 1e-8)
    names = {id(param): name for name, param in model.named_parameters()}
    found: dict[str, Groups] = {'backbone': {}, 'head': {}}
    for group in optimizer.param_groups:
        for param in group['params']:
            put(found, names.pop(id(param)), group_name(group['lr'], group['weight_decay']))
    frozen = {id(param) for param in model.parameters() if not param.requires_grad}
    assert names.keys() == frozen
    for name in names.values():
        put(found, name, 'frozen')
    assert in_order(found) == recorded(row)


def test_the_official_rule_gives_the_recorded_groups(row: str, model: nn.Module) -> None:
    assert official_groups(model) == recorded(row)


def test_what_is_recorded_says_what_the_recipe_says() -> None:
    """Say it in words of the recipe, so that the record is not only what was found."""
    head = golden()['head']
    names = {name: group for group, names in head.items() for name in names}
    for table in ('query_feat', 'query_embed', 'level_embed'):
        assert names[f'decoder.{table}.weight'] == group_name(LR, 0)
    # A bare parameter in the official pixel decoder, an embedding in its decoder.
    assert names['pixel_decoder.level_embed'] == group_name(LR, DECAY)
    biases = [name for name in names if name.endswith('bias') and 'norm' not in name]
    assert len(biases) > 50
    assert {names[name] for name in biases} == {group_name(LR, DECAY)}
    assert {group for name, group in names.items() if 'norm' in name} == {group_name(LR, 0)}

    backbones = golden()['backbones']
    counts = {
        name: {group: len(names) for group, names in groups.items()}
        for name, groups in backbones.items()
    }
    # 53 convolutions, each with a norm of two parameters.
    convolutions, decayed, undecayed = 53, group_name(1e-5, DECAY), group_name(1e-5, 0)
    assert counts['r50 frozen'] == {'frozen': 2 * convolutions, decayed: convolutions}
    assert counts['r50 sync'] == {undecayed: 2 * convolutions, decayed: convolutions}
    for name, blocks in (('swin-t', 2 + 2 + 6 + 2), ('swin-l', 2 + 2 + 18 + 2)):
        # Block: four linear layers, two norms, one table. Patches: a convolution and a norm.
        # Three mergings: a norm and a linear layer without bias. Four norms of the outputs.
        assert counts[name] == {
            decayed: 8 * blocks + 2 + 3,
            undecayed: 5 * blocks + 2 + 3 * 2 + 4 * 2,
        }


def test_each_kind_of_model_is_there() -> None:
    assert {parse(row).task for row in ROWS} == {'semantic', 'panoptic'}
    assert set(ROWS.values()) == golden()['backbones'].keys()


def main() -> None:
    backbones, heads = {}, []
    for row, name in ROWS.items():
        groups = official_groups(build(row))
        backbones[name] = groups['backbone']
        heads.append(groups['head'])
    assert all(head == heads[0] for head in heads)
    content = {'backbones': backbones, 'head': heads[0]}
    GOLDEN.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    main()
