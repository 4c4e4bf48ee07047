"""Learning rate and weight decay of each kind of parameter.

`tests/parity/test_optimizer_groups.py` does the same for the models of the rows.
"""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

import mmseg_m2f.adapters  # noqa: F401 - registers the constructor

LR, DECAY = 1e-4, 0.05
UNDECAYED = {
    *('bn.weight', 'bn.bias', 'sync_bn.weight', 'sync_bn.bias', 'gn.weight', 'gn.bias'),
    *('inorm.weight', 'inorm.bias', 'ln.weight', 'ln.bias'),
    *('query_feat.weight', 'relative_position_bias_table', 'absolute_pos_embed'),
}
DECAYED = {
    *('conv.weight', 'conv.bias', 'linear.weight', 'linear.bias', 'level_embed'),
    *('attn.in_proj_weight', 'attn.in_proj_bias', 'attn.out_proj.weight', 'attn.out_proj.bias'),
}


class EveryKind(nn.Module):
    """One module of each kind that the recipe knows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 4)
        self.attn = nn.MultiheadAttention(4, 2)
        self.bn = nn.BatchNorm2d(4)
        self.sync_bn = nn.SyncBatchNorm(4)
        self.gn = nn.GroupNorm(2, 4)
        self.inorm = nn.InstanceNorm2d(4, affine=True)
        self.ln = nn.LayerNorm(4)
        self.query_feat = nn.Embedding(3, 4)
        self.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, 4))


def network():
    return nn.ModuleDict({'backbone': EveryKind(), 'head': EveryKind()})


def build(model, paramwise_cfg=None, **wrapper):
    return build_optim_wrapper(
        model,
        {
            'type': 'OptimWrapper',
            'constructor': 'mmseg_m2f.Mask2FormerOptimWrapperConstructor',
            'optimizer': {'type': 'AdamW', 'lr': LR, 'weight_decay': DECAY},
            'paramwise_cfg': paramwise_cfg,
            **wrapper,
        },
    )


def settings(wrapper):
    """Return {parameter name: (lr, weight decay)}."""
    return {
        name: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for name in group['param_names']
    }


def test_official_groups():
    model = network()
    wrapper = build(model, accumulative_counts=4, clip_grad={'max_norm': 0.01})
    expected = {}
    for part, lr in (('backbone', LR * 0.1), ('head', LR)):
        expected |= {f'{part}.{name}': (lr, DECAY) for name in DECAYED}
        expected |= {f'{part}.{name}': (lr, 0.0) for name in UNDECAYED}
    assert settings(wrapper) == expected
    # Four groups, in the order of first appearance, with each parameter once.
    groups = wrapper.optimizer.param_groups
    assert [group['name'] for group in groups] == [
        f'lr x{lr}, decay x{decay}' for lr in (0.1, 1) for decay in (1, 0)
    ]
    named = dict(model.named_parameters())
    for group in groups:
        assert [named[name] for name in group['param_names']] == group['params']
    assert sum(len(group['params']) for group in groups) == len(named)
    # Other options reach the wrapper; `base_lr` is what MMEngine's schedulers and its log read.
    assert (wrapper._accumulative_counts, wrapper.clip_grad_kwargs) == (4, {'max_norm': 0.01})
    assert wrapper.get_lr()['base_lr'] == [LR]


def test_frozen_left_out_and_shared_once():
    model = network()
    model.backbone.conv.requires_grad_(False)
    model.head.linear = model.backbone.linear
    expected = {f'{part}.{name}' for part in model for name in UNDECAYED | DECAYED}
    for left_out in ('backbone.conv', 'head.linear'):
        expected -= {f'{left_out}.weight', f'{left_out}.bias'}
    assert set(settings(build(model))) == expected


def test_custom_keys_replace_only_what_they_give(warned):
    keys = {
        'backbone': {'decay_mult': 0.5},
        'backbone.ln': {'lr_mult': 0.0},
        'query_feat': {'decay_mult': 1.0},
        'bakbone': {'lr_mult': 0.0},
    }
    got = settings(build(network(), {'custom_keys': keys}))
    assert got['backbone.conv.bias'] == (pytest.approx(LR * 0.1), DECAY * 0.5)
    # The longest key wins, and the norm stays without decay.
    assert got['backbone.ln.weight'] == (0.0, 0.0)
    assert got['head.query_feat.weight'] == (LR, DECAY)
    assert got['head.conv.weight'] == (LR, DECAY)
    assert ["'bakbone' matches no trainable parameter" in line for line in warned] == [True]


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (
            {'paramwise_cfg': {'backbone_lr': 1}},
            r"\['backbone_lr'\].*backbone_lr_mult.*custom_keys",
        ),
        ({'paramwise_cfg': {'custom_keys': {'conv': {'lr': 1}}}}, r"'conv'.*\['lr'\].*decay_mult"),
        ({'optimizer': {'type': 'AdamW', 'lr': LR}}, "must give 'weight_decay'"),
        ({'optimizer': {'type': 'AdamW', 'weight_decay': DECAY}}, "must give 'lr'"),
    ],
)
def test_a_wrong_setting_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build(network(), **config)
