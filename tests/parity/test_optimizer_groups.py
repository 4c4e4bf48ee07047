"""Learning rate and weight decay of every parameter of real rows, against the official rule."""

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from tests.configs.rows import build, load

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
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm),
    nn.LocalResponseNorm,
)
LR, BACKBONE_LR, DECAY = 1e-4, 1e-5, 0.05
FROZEN = None


def official_groups(model):
    """Walk over the modules as the official code does: {name: (rate, decay), or FROZEN}."""
    found = {}
    for path, module in model.named_modules():
        for own, param in module.named_parameters(recurse=False):
            name = f'{path}.{own}'
            lr = BACKBONE_LR if 'backbone' in name else LR
            table = 'relative_position_bias_table' in name or 'absolute_pos_embed' in name
            undecayed = table or isinstance(module, (*OFFICIAL_NORMS, nn.Embedding))
            group = (lr, 0.0 if undecayed else DECAY)
            found[name] = group if param.requires_grad else FROZEN
    return found


def constructed_groups(row, model):
    """Return the groups of the row's constructor. What its optimizer does not hold is frozen."""
    optimizer = build_optim_wrapper(model, load(row).optim_wrapper.to_dict()).optimizer
    assert (optimizer.defaults['betas'], optimizer.defaults['eps']) == ((0.9, 0.999), 1e-8)
    groups = {
        param: (pytest.approx(group['lr']), pytest.approx(group['weight_decay']))
        for group in optimizer.param_groups
        for param in group['params']
    }
    return {name: groups.get(param, FROZEN) for name, param in model.named_parameters()}


@pytest.mark.parametrize('row', ROWS)
def test_every_parameter_is_in_its_official_group(row):
    model = build(load(row))
    groups = official_groups(model)
    assert groups == constructed_groups(row, model)
    # And in words of the recipe, so that the rule above is not taken on trust. First the head.
    head = {k.split('.', 1)[1]: v for k, v in groups.items() if not k.startswith('backbone.')}
    for table in ('query_feat', 'query_embed', 'level_embed'):
        assert head[f'decoder.{table}.weight'] == (LR, 0)
    # A bare parameter in the official pixel decoder, an embedding in its decoder.
    assert head['pixel_decoder.level_embed'] == (LR, DECAY)
    biases = [name for name in head if name.endswith('bias') and 'norm' not in name]
    assert len(biases) > 50
    assert {head[name] for name in biases} == {(LR, DECAY)}
    assert {group for name, group in head.items() if 'norm' in name} == {(LR, 0)}

    backbone = [group for name, group in groups.items() if name.startswith('backbone.')]
    counts = {group: backbone.count(group) for group in backbone}
    decayed, undecayed, kind = (BACKBONE_LR, DECAY), (BACKBONE_LR, 0), ROWS[row]
    if isinstance(kind, str):
        # 53 convolutions, each with a norm of two parameters.
        assert counts == {decayed: 53, FROZEN if kind == 'frozen' else undecayed: 2 * 53}
    else:
        # Block: four linear layers, two norms, one table. Patches: a convolution and a norm.
        # Three mergings: a norm and a linear layer without bias. Four norms of the outputs.
        assert counts == {decayed: 8 * kind + 2 + 3, undecayed: 5 * kind + 2 + 3 * 2 + 4 * 2}
