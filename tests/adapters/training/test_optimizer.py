"""Learning rate and weight decay of each kind of parameter."""

import importlib

import pytest
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

import mmseg_m2f.adapters  # noqa: F401 - registers the constructor

LR, DECAY = 1e-4, 0.05


class EveryKind(nn.Module):
    """One module of each kind that the recipe knows."""

    def __init__(self) -> None:
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


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = EveryKind()
        self.head = EveryKind()


UNDECAYED = {
    *(
        f'{norm}.{kind}'
        for norm in ('bn', 'sync_bn', 'gn', 'inorm', 'ln')
        for kind in ('weight', 'bias')
    ),
    'query_feat.weight',
    'relative_position_bias_table',
    'absolute_pos_embed',
}
DECAYED = {
    *('conv.weight', 'conv.bias', 'linear.weight', 'linear.bias', 'level_embed'),
    *('attn.in_proj_weight', 'attn.in_proj_bias', 'attn.out_proj.weight', 'attn.out_proj.bias'),
}


def build(model: nn.Module, paramwise_cfg: dict | None = None, **wrapper: object) -> OptimWrapper:
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


def settings(wrapper: OptimWrapper) -> dict[str, tuple[float, float]]:
    """Return {parameter name: (lr, weight decay)}."""
    return {
        name: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for name in group['param_names']
    }


def test_official_groups() -> None:
    model = Network()
    wrapper = build(model)
    expected = {}
    for part, lr in (('backbone', LR * 0.1), ('head', LR)):
        expected |= {f'{part}.{name}': (lr, DECAY) for name in DECAYED}
        expected |= {f'{part}.{name}': (lr, 0.0) for name in UNDECAYED}
    assert settings(wrapper) == expected
    # Four groups, in the order of first appearance, with each parameter once.
    groups = wrapper.optimizer.param_groups
    assert [(group['lr'], group['weight_decay']) for group in groups] == [
        (pytest.approx(1e-5), DECAY),
        (pytest.approx(1e-5), 0.0),
        (LR, DECAY),
        (LR, 0.0),
    ]
    assert groups[0]['name'] == 'lr x0.1, decay x1'
    named = dict(model.named_parameters())
    for group in groups:
        assert [named[name] for name in group['param_names']] == group['params']
    assert sum(len(group['params']) for group in groups) == len(named)


def test_frozen_left_out_and_shared_once() -> None:
    model = Network()
    model.backbone.conv.requires_grad_(False)
    model.head.linear = model.backbone.linear
    names = settings(build(model))
    assert not any(name.startswith('backbone.conv') for name in names)
    assert 'backbone.linear.weight' in names
    assert 'head.linear.weight' not in names


def test_custom_keys_replace_only_what_they_give() -> None:
    keys = {
        'backbone': {'decay_mult': 0.5},
        'backbone.ln': {'lr_mult': 0.0},
        'query_feat': {'decay_mult': 1.0},
    }
    got = settings(build(Network(), {'custom_keys': keys}))
    assert got['backbone.conv.bias'] == (pytest.approx(LR * 0.1), DECAY * 0.5)
    # The longest key wins, and the norm stays without decay.
    assert got['backbone.ln.weight'] == (0.0, 0.0)
    assert got['head.query_feat.weight'] == (LR, DECAY)
    assert got['head.conv.weight'] == (LR, DECAY)


def test_key_that_matches_nothing_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    monkeypatch.setattr(
        'mmseg_m2f.adapters.training.optimizer.print_log', lambda text, **_: lines.append(text)
    )
    build(Network(), {'custom_keys': {'bakbone': {'lr_mult': 0.0}}})
    assert "['bakbone'] match no trainable parameter" in lines[0]


@pytest.mark.parametrize(
    ('paramwise_cfg', 'message'),
    [
        ({'backbone_lr': 0.1}, r"\['backbone_lr'\].*backbone_lr_mult.*custom_keys"),
        ({'custom_keys': {'conv': {'lr': 0.1}}}, r"'conv'.*\['lr'\].*lr_mult.*decay_mult"),
    ],
)
def test_unknown_keys_name_the_known(paramwise_cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Network(), paramwise_cfg)


@pytest.mark.parametrize('key', ['lr', 'weight_decay'])
def test_the_optimizer_must_give_what_is_multiplied(key: str) -> None:
    optimizer = {'type': 'AdamW', 'lr': LR, 'weight_decay': DECAY}
    del optimizer[key]
    with pytest.raises(ValueError, match=f"must give '{key}'"):
        build(Network(), optimizer=optimizer)


def test_wrapper_options_pass_through() -> None:
    wrapper = build(Network(), accumulative_counts=4, clip_grad={'max_norm': 0.01})
    assert wrapper._accumulative_counts == 4
    assert wrapper.clip_grad_kwargs == {'max_norm': 0.01}
    # What MMEngine's schedulers and its log read.
    assert wrapper.get_lr()['base_lr'] == [LR]


def test_the_real_head() -> None:
    from mmseg_m2f.registry import MODELS

    head = MODELS.build(
        {'type': 'mmseg_m2f.Mask2FormerHead', 'num_classes': 3, 'in_channels': [8, 16, 32, 64]}
    )
    model = nn.ModuleDict({'decode_head': head})
    got = settings(build(model))
    assert set(got) == {name for name, _ in model.named_parameters()}
    undecayed = {name for name, (_, decay) in got.items() if decay == 0}
    tables = {'query_feat', 'query_embed', 'level_embed'}
    assert {f'decode_head.decoder.{table}.weight' for table in tables} <= undecayed
    assert got['decode_head.pixel_decoder.level_embed'] == (LR, DECAY)
    rest = undecayed - {f'decode_head.decoder.{table}.weight' for table in tables}
    assert all('norm' in name for name in rest)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
    assert len(rest) == 2 * len(norms)


def backbone_settings(config: dict) -> tuple[nn.Module, dict[str, tuple[float, float]]]:
    registry = pytest.importorskip('mmseg.registry')
    importlib.import_module('mmseg.models')
    # With its scope: a test before this one may have left another as the default.
    config = {**config, 'type': f'mmseg.{config["type"]}'}
    model = nn.ModuleDict({'backbone': registry.MODELS.build(config)})
    return model, settings(build(model))


def test_swin_backbone() -> None:
    model, got = backbone_settings(
        {
            'type': 'SwinTransformer',
            'embed_dims': 8,
            'depths': (1, 1),
            'num_heads': (1, 2),
            'strides': (4, 2),
            'out_indices': (0, 1),
            'use_abs_pos_embed': True,
            'pretrain_img_size': 32,
        }
    )
    assert set(got) == {name for name, _ in model.named_parameters()}
    undecayed = {name for name, (lr, decay) in got.items() if decay == 0}
    norms = {f'{name}.' for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    tables = ('relative_position_bias_table', 'absolute_pos_embed')
    # The norms of the outputs belong to the backbone as well.
    assert {'backbone.norm0.weight', 'backbone.norm1.bias'} <= undecayed
    assert undecayed == {
        name
        for name in got
        if name.endswith(tables) or any(name.startswith(norm) for norm in norms)
    }
    assert {lr for lr, _ in got.values()} == {LR * 0.1}


def test_frozen_norms_of_a_resnet_are_left_out() -> None:
    frozen = {'type': 'BN', 'requires_grad': False}
    _, got = backbone_settings(
        {'type': 'ResNet', 'depth': 18, 'stem_channels': 4, 'base_channels': 4, 'norm_cfg': frozen}
    )
    assert set(got.values()) == {(LR * 0.1, DECAY)}
    # 20 convolutions: the stem, 16 in the blocks, 3 in the shortcuts.
    assert len(got) == 20
