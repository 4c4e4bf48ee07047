"""Learning rate and weight decay of every parameter of real rows, against the official rule."""

import copy

import pytest
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from tests.configs.rows import load
from tests.configs.test_rows import build

# Blocks of a Swin.
SWIN_T, SWIN_L = 2 + 2 + 6 + 2, 2 + 2 + 18 + 2
# A segmentor and a detector with each kind of backbone, ResNets with each kind of norm.
ROWS = {
    'mask2former_r50_ade20k': 'frozen',
    'mask2former_r50_coco-panoptic': 'frozen',
    'mask2former_r50_cityscapes': 'sync',
    'mask2former_r50_cityscapes-panoptic': 'sync',
    'mask2former_swin-t_ade20k': SWIN_T,
    'mask2former_swin-t_coco-panoptic': SWIN_T,
    'mask2former_swin-l_ade20k': SWIN_L,
    'mask2former_swin-l_coco-panoptic': SWIN_L,
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
FROZEN = None

# Name of a parameter -> (learning rate, weight decay), or FROZEN.
Groups = dict[str, tuple[float, float] | None]


def official_groups(model: nn.Module) -> Groups:
    """Walk over the modules as the official code does."""
    found: Groups = {}
    for path, module in model.named_modules():
        for own, param in module.named_parameters(recurse=False):
            name = f'{path}.{own}'
            lr = BACKBONE_LR if 'backbone' in name else LR
            table = 'relative_position_bias_table' in name or 'absolute_pos_embed' in name
            undecayed = table or isinstance(module, (*OFFICIAL_NORMS, nn.Embedding))
            group = (lr, 0.0 if undecayed else DECAY)
            found[name] = group if param.requires_grad else FROZEN
    return found


def constructed_groups(row: str, model: nn.Module) -> Groups:
    """Return what the row's constructor gives; what its optimiser does not hold is frozen."""
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
    groups = {
        id(param): (pytest.approx(group['lr']), pytest.approx(group['weight_decay']))
        for group in optimizer.param_groups
        for param in group['params']
    }
    return {name: groups.get(id(param), FROZEN) for name, param in model.named_parameters()}


@pytest.mark.parametrize('row', ROWS)
def test_every_parameter_is_in_its_official_group(row: str) -> None:
    model = build(row)
    groups = official_groups(model)
    assert groups == constructed_groups(row, model)
    check_head({k.split('.', 1)[1]: v for k, v in groups.items() if not k.startswith('backbone.')})
    check_backbone(ROWS[row], [v for k, v in groups.items() if k.startswith('backbone.')])


def check_head(groups: Groups) -> None:
    """Say it in words of the recipe, so that the rule above is not taken on trust."""
    for table in ('query_feat', 'query_embed', 'level_embed'):
        assert groups[f'decoder.{table}.weight'] == (LR, 0)
    # A bare parameter in the official pixel decoder, an embedding in its decoder.
    assert groups['pixel_decoder.level_embed'] == (LR, DECAY)
    biases = [name for name in groups if name.endswith('bias') and 'norm' not in name]
    assert len(biases) > 50
    assert {groups[name] for name in biases} == {(LR, DECAY)}
    assert {group for name, group in groups.items() if 'norm' in name} == {(LR, 0)}


def check_backbone(kind: str | int, groups: list[tuple[float, float] | None]) -> None:
    counts = {group: groups.count(group) for group in groups}
    decayed, undecayed = (BACKBONE_LR, DECAY), (BACKBONE_LR, 0)
    if isinstance(kind, str):
        # 53 convolutions, each with a norm of two parameters.
        norms = FROZEN if kind == 'frozen' else undecayed
        assert counts == {decayed: 53, norms: 2 * 53}
    else:
        # Block: four linear layers, two norms, one table. Patches: a convolution and a norm.
        # Three mergings: a norm and a linear layer without bias. Four norms of the outputs.
        assert counts == {decayed: 8 * kind + 2 + 3, undecayed: 5 * kind + 2 + 3 * 2 + 4 * 2}
