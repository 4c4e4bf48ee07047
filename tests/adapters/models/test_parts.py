"""Every part builds alone from a plain dict, and parts of others plug in."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DefaultScope

from mmseg_m2f.adapters.models.config import MissingSizesError
from mmseg_m2f.registry import MODELS, TASK_UTILS

CHANNELS = {'in_channels': [8, 16, 32, 64]}
SIZES = {'num_classes': 3, **CHANNELS, 'num_queries': 5}
PIXEL_DECODER = {'channels': 32, 'num_layers': 1, 'norm_groups': 8, 'ffn_dim': 32}
FEW_POINTS = {'points': {'num_points': 16}}
SMALL = {
    'pixel_decoder': PIXEL_DECODER,
    'decoder': {'num_layers': 1, 'ffn_dim': 32},
    'losses': FEW_POINTS,
}
ALONE = {
    'MSDeformAttnPixelDecoder': (MODELS, {**CHANNELS, 'attention': {'backend': 'reference'}}),
    'MaskedAttentionDecoder': (MODELS, {'num_classes': 3}),
    'MSDeformAttn': (MODELS, {}),
    'ClassLoss': (MODELS, {'num_classes': 3}),
    'PointMaskLoss': (MODELS, {}),
    'PointDiceLoss': (MODELS, {'weight': 2.0}),
    'HungarianMatcher': (TASK_UTILS, {}),
    'ClassCost': (TASK_UTILS, {}),
    'PointMaskCost': (TASK_UTILS, {}),
    'PointDiceCost': (TASK_UTILS, {'weight': 1.0}),
    'PointSampler': (TASK_UTILS, {'num_points': 7}),
    'Mask2FormerHead': (MODELS, SIZES),
    'Mask2FormerUniversalHead': (MODELS, {**SIZES, 'thing_ids': [2, 0]}),
}


def build_head(**head):
    return MODELS.build({'type': 'mmseg_m2f.Mask2FormerHead', **SIZES, **SMALL, **head})


def features(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 8 * 2**i, 16 >> i, 16 >> i) for i in range(4)]
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


def trained(head):
    """Return the losses on one image with two classes, after a backward pass."""
    label_map = torch.zeros(64, 64, dtype=torch.long)
    label_map[:, 32:] = 2
    gt_sem_seg = SimpleNamespace(data=label_map[None])
    torch.manual_seed(3)
    losses = head.loss(features(), [SimpleNamespace(gt_sem_seg=gt_sem_seg, metainfo={})])
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    return losses


@pytest.mark.parametrize('scope', [None, 'mmseg', 'mmdet'])
@pytest.mark.parametrize('name', ALONE)
def test_each_part_builds_alone_from_a_dict(name, scope):
    pytest.importorskip(scope or 'mmcv')
    registry, cfg = ALONE[name]
    with DefaultScope.overwrite_default_scope(scope):
        assert callable(registry.build({'type': f'mmseg_m2f.{name}', **cfg}))


def test_our_names_win_over_those_of_the_current_scope():
    """mmdet has a MSDeformAttnPixelDecoder too; inside our head the bare name means ours."""
    pytest.importorskip('mmdet')
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = build_head(pixel_decoder={'type': 'MSDeformAttnPixelDecoder', **PIXEL_DECODER})
    assert type(head.pixel_decoder).__module__ == 'mmseg_m2f.core.pixel_decoder'


def test_the_matcher_follows_the_losses_unless_told():
    head = build_head(
        losses={'mask': {'weight': 7.0}, 'points': {'num_points': 33}},
        matcher={'costs': {'dice': {'weight': 1.0}}},
    )
    config = head.resolved_config()['matcher']
    weights = {name: cost['weight'] for name, cost in config['costs'].items()}
    assert weights == {'cls': 2.0, 'mask': 7.0, 'dice': 1.0}
    assert config['num_points'] == 33
    head = build_head(matcher={'costs': {'dice': None}})
    assert [type(cost).__name__ for cost in head.matcher.costs] == ['ClassCost', 'PointMaskCost']


class ModuleCost(torch.nn.Module):
    """A cost of a user, without a constructor."""

    def forward(self, class_logits, point_logits, labels, point_targets):
        return torch.zeros(len(class_logits), len(labels))


class PlainCost:
    def __call__(self, *inputs):
        return ModuleCost().forward(*inputs)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ({'queries': 3}, r"does not know \['queries'\].*'num_queries'"),
        ({'decoder': {'layers': 1}}, r"decoder: .* does not know \['layers'\].*'num_layers'"),
        ({'compat': {'mode': 0}}, r"compat does not know \['mode'\]; known keys: \['init', "),
        *(
            ({'compat': {key: 0}}, rf"know \['{key}'\]\. .* FixedSizeCrop\(offsets=")
            for key in ('crop_offset', 'resize_backend', 'pad_value')
        ),
        ({'losses': {'boxes': {}}}, r"losses does not know \['boxes'\]"),
        ({'matcher': {'costs': {'mine': {}}}}, r'matcher\.costs\.mine needs a type'),
        (
            {'matcher': {'costs': {'dice': {'type': PlainCost, 'foo': 1}}}},
            r"does not know \['foo'\]; known keys: \[\]",
        ),
        ({'matcher': {'points': 'some'}}, r"points must be one of .*'some'"),
        ({'class_weight': [1.0]}, r'class_weight must have num_classes \(3\)'),
        ({'in_channels': 64}, r'in_channels of the head is 64\. List the channels'),
        ({'decoder': {'num_classes': 9}}, r'head has num_classes = 3, its decoder 9'),
        (
            {'matcher': {'costs': dict.fromkeys(['cls', 'mask', 'dice'])}},
            r'needs at least one cost',
        ),
    ],
)
def test_wrong_settings_say_what_is_allowed(override, message):
    with pytest.raises(ValueError, match=message):
        build_head(**override)


def test_class_weights_reach_the_class_loss():
    head = build_head(class_weight=[1.0, 2.0, 3.0], no_object_weight=0.5)
    assert head.criterion.class_loss.class_weight.tolist() == [1.0, 2.0, 3.0, 0.5]


@pytest.mark.parametrize('scope', ['', 'mmcv.'])
def test_mmcv_attention_swaps_in_by_type_with_equal_outputs(scope):
    pytest.importorskip('mmcv._ext')
    ours = build_head()
    # Off their initial values, so that offsets and weights matter.
    for layer in ours.pixel_decoder.layers:
        for linear in (layer.attn.sampling_offsets, layer.attn.attention_weights):
            torch.nn.init.normal_(linear.weight, std=0.1)
    attention = {'type': f'{scope}MultiScaleDeformableAttention'}
    theirs = build_head(pixel_decoder={**PIXEL_DECODER, 'attention': attention})
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert 'mmcv' in str(type(theirs.pixel_decoder.layers[0].attn).__mro__)

    maps = features(torch.float64)
    for a, b in zip(ours.double()(maps), theirs.double()(maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_foreign_costs_and_losses_plug_in(said):
    match_cost = pytest.importorskip('mmdet.models.task_modules')
    derived = type('Derived', (match_cost.DiceCost,), {})
    costs = {
        'cls': {'type': 'mmdet.FocalLossCost', 'weight': 2.0},
        'mask': {'type': derived, 'weight': 5.0, 'pred_act': True, 'eps': 1.0},
        'dice': {'type': PlainCost},  # it does not take the weight of the loss
        'module': {'type': ModuleCost},
    }
    mask = {'type': 'mmdet.FocalLoss', 'loss_weight': 20.0}
    head = build_head(matcher={'costs': costs}, losses={'mask': mask, **FEW_POINTS})
    foreign = 'FocalLossCost, Derived, PlainCost, ModuleCost does not declare row_wise'
    assert not head.matcher.is_row_wise
    assert any(line.startswith(foreign) for line in said)
    trained(head)
    with pytest.raises(TypeError, match='FocalLoss with sigmoid cannot be the class loss'):
        build_head(losses={'cls': {'type': 'mmdet.FocalLoss'}})


def test_mmdet_parts_equal_ours_where_the_formula_is_the_same():
    """The same trio from mmdet gives the same losses, gradients included."""
    pytest.importorskip('mmdet')
    costs = {
        'cls': {'type': 'mmdet.ClassificationCost', 'weight': 2.0},
        'mask': {'type': 'mmdet.CrossEntropyLossCost', 'use_sigmoid': True, 'weight': 5.0},
        'dice': {'type': 'mmdet.DiceCost', 'weight': 5.0, 'pred_act': True, 'eps': 1.0},
    }
    losses = {
        'cls': {'type': 'mmdet.CrossEntropyLoss', 'loss_weight': 2.0},
        'mask': {'type': 'mmdet.CrossEntropyLoss', 'use_sigmoid': True, 'loss_weight': 5.0},
        'dice': {'type': 'mmdet.DiceLoss', 'naive_dice': True, 'eps': 1.0, 'loss_weight': 5.0},
        **FEW_POINTS,
    }
    ours, theirs = build_head(), build_head(matcher={'costs': costs}, losses=losses)
    theirs.load_state_dict(ours.state_dict())
    # In float32, to which the costs of mmdet cast.
    expected, found = trained(ours), trained(theirs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    grads = [head.decoder.query_feat.weight.grad for head in (theirs, ours)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


def test_a_pixel_decoder_without_sizes_is_refused_unless_the_decoder_has_them():
    @MODELS.register_module(force=True)
    class WithoutSizes(torch.nn.Module):
        num_levels = 2

        def __init__(self, in_channels):
            super().__init__()

    part = {'type': 'WithoutSizes', '_delete_': True}
    with pytest.raises(MissingSizesError, match=r"WithoutSizes lacks .*\['channels'\]"):
        build_head(pixel_decoder=part)
    decoder = build_head(pixel_decoder=part, decoder={'num_layers': 1, 'channels': 32}).decoder
    assert (decoder.config.channels, decoder.config.num_levels) == (32, 2)
