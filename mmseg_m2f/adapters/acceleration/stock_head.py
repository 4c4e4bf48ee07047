"""Read a built stock head, and build ours with the same settings.

Settings are read off the modules, not off the config that they were built from: a user may have
changed them since.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mmseg_m2f.adapters.acceleration.swap import CannotAccelerateError
from mmseg_m2f.adapters.acceleration.twin import network_modules
from mmseg_m2f.adapters.models.decode_head import Mask2FormerHead
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.adapters.models.mmdet_losses import SAME_COSTS, SAME_LOSSES
from mmseg_m2f.adapters.models.universal_head import Mask2FormerUniversalHead

_CONVOLUTION = {'stride': (1, 1), 'dilation': (1, 1), 'groups': 1, 'padding_mode': 'zeros'}
_POSITION = {'temperature': 10000, 'normalize': True, 'scale': math.tau, 'eps': 1e-6, 'offset': 0}
# The modules that a network may consist of, each with the settings that our parts have.
# A subclass may compute anything, so that only the classes themselves are listed.
_KNOWN: dict[str, dict[str, Any]] = {
    'mmcv.Conv2d': _CONVOLUTION,
    'mmcv.ConvModule': {},
    'mmcv.Dropout': {'p': 0},
    'mmcv.FFN': {'num_fcs': 2, 'add_identity': True},
    'mmcv.Linear': {},
    'mmcv.MultiScaleDeformableAttention': {'batch_first': True},
    'mmcv.MultiheadAttention': {'batch_first': True},
    'mmdet.DeformableDetrTransformerEncoderLayer': {},
    'mmdet.MSDeformAttnPixelDecoder': {},
    'mmdet.Mask2FormerTransformerDecoder': {},
    'mmdet.Mask2FormerTransformerDecoderLayer': {},
    'mmdet.Mask2FormerTransformerEncoder': {},
    'mmdet.SinePositionalEncoding': _POSITION,
    'mmengine.ModuleList': {},
    'mmengine.Sequential': {},
    'torch.Conv2d': _CONVOLUTION,
    'torch.Dropout': {'p': 0},
    'torch.Embedding': {'max_norm': None, 'sparse': False},
    'torch.GroupNorm': {'eps': 1e-5},
    'torch.Identity': {},
    'torch.LayerNorm': {'eps': 1e-5},
    'torch.Linear': {},
    'torch.ModuleList': {},
    'torch.MultiheadAttention': {'dropout': 0, 'add_zero_attn': False},
    'torch.NonDynamicallyQuantizableLinear': {},
    'torch.ReLU': {},
    'torch.Sequential': {},
}
# What the stock losses do otherwise than the official code.
_COMPAT = {'num_masks_mode': 'mmdet', 'keep_empty_gt': True}


def kind_of(part: object) -> str:
    """Return ``package.Class`` of an object."""
    return f'{type(part).__module__.partition(".")[0]}.{type(part).__name__}'


def check_network(head: nn.Module) -> None:
    """Check that our parts compute what every module of a stock head's network computes.

    Raises:
        CannotAccelerateError: a module, or a setting, that our parts do not have.
    """
    for path, module in network_modules(head).items():
        kind = kind_of(module)
        if kind not in _KNOWN:
            raise CannotAccelerateError(f'{path} of the head is {kind}, our parts have none')
        settings = _KNOWN[kind]
        if isinstance(module, nn.Conv2d):
            settings = {**settings, 'padding': tuple(side // 2 for side in module.kernel_size)}
        for key, value in _differences(module, settings).items():
            raise CannotAccelerateError(
                f'{path} of the head ({kind}) has {key} = {value}, our parts have {settings[key]} '
                'only'
            )


def build_ours(head: Any, points: str) -> tuple[MaskHead, str]:
    """Build our head with the settings of a stock head.

    Args:
        head: of mmseg or mmdet; `check_network` has passed it.
        points: of our matcher.

    Returns:
        The head, with new weights, and why the stock losses have to stay, or ''.

    Raises:
        CannotAccelerateError: a setting differs where our parts have one for all.
        ValueError: sizes that our parts cannot have.
    """
    settings, why_stock_losses = _network_settings(head), _objection_to_losses(head)
    losses = {} if why_stock_losses else _loss_settings(head)
    losses['matcher'] = {**losses.get('matcher', {}), 'points': points}
    settings = {**settings, **losses, 'compat': _COMPAT}
    # Our initial weights are dropped: the user's random numbers stay what they are.
    with torch.random.fork_rng(devices=[]):
        if kind_of(head).startswith('mmseg.'):
            names = ('num_classes', 'align_corners', 'ignore_index')
            own = {name: getattr(head, name) for name in names}
            return Mask2FormerHead(**settings, **own), why_stock_losses
        num_things, num_stuff = head.num_things_classes, head.num_stuff_classes
        things = {'num_classes': num_things + num_stuff, 'thing_ids': list(range(num_things))}
        return Mask2FormerUniversalHead(**settings, **things), why_stock_losses


def _differences(part: object, settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: getattr(part, key) for key in settings}
    return {key: value for key, value in found.items() if value != settings[key]}


def _network_settings(head: Any) -> dict[str, Any]:
    pixel_decoder, channels = head.pixel_decoder, head.cls_embed.in_features
    encoder, decoder = pixel_decoder.encoder.layers, head.transformer_decoder.layers
    num_levels = head.level_embed.num_embeddings
    _one_for_all('num_outs', [pixel_decoder.num_outs, num_levels])
    finest_first = [*pixel_decoder.lateral_convs, *reversed(pixel_decoder.input_convs)]
    norms = [module for module in pixel_decoder.modules() if isinstance(module, nn.GroupNorm)]
    attentions = [part for layer in decoder for part in (layer.self_attn, layer.cross_attn)]
    return {
        'in_channels': [block.conv.in_channels for block in finest_first],
        'num_queries': head.query_feat.num_embeddings,
        'pixel_decoder': {
            'channels': channels,
            'num_layers': len(encoder),
            'num_levels': num_levels,
            'num_heads': _one_for_all('num_heads', [x.self_attn.num_heads for x in encoder]),
            'num_points': _one_for_all('num_points', [x.self_attn.num_points for x in encoder]),
            'ffn_dim': _ffn_dim(encoder),
            'norm_groups': _one_for_all('num_groups', [norm.num_groups for norm in norms]),
        },
        'decoder': {
            'channels': channels,
            'num_layers': len(decoder),
            'num_heads': _one_for_all('num_heads', [part.num_heads for part in attentions]),
            'ffn_dim': _ffn_dim(decoder),
        },
    }


def _ffn_dim(layers: Iterable[Any]) -> int:
    widths = [layer.ffn.feedforward_channels for layer in layers]
    return _one_for_all('feedforward_channels', widths)


def _one_for_all(name: str, values: Iterable[int]) -> int:
    found = sorted(set(values))
    if len(found) != 1:
        raise CannotAccelerateError(f'{name} is {found}, our parts have one for all')
    return found[0]


def _objection_to_losses(head: Any) -> str:
    """Return why our losses and matcher would give other numbers than the stock ones, or ''."""
    if not hasattr(head, 'assigner'):
        return 'the model was built without train_cfg'
    if head.class_weight is None:
        return 'loss_cls has no class_weight'
    for name, kind in (('sampler', 'MaskPseudoSampler'), ('assigner', 'HungarianAssigner')):
        if kind_of(getattr(head, name)) != f'mmdet.{kind}':
            return f'the {name} is {kind_of(getattr(head, name))}'
    for name, (kind, settings) in SAME_LOSSES.items():
        loss = getattr(head, f'loss_{name}')
        if kind_of(loss) != f'mmdet.{kind}' or _differences(loss, settings):
            return f'ours have no such {kind_of(loss)} as loss_{name}'
    costs = head.assigner.match_costs
    names = {_cost_name(cost) for cost in costs}
    if None in names or len(names) < len(costs):
        return f'ours have no such costs as {", ".join(map(kind_of, costs))}'
    return ''


def _cost_name(cost: object) -> str | None:
    for name, (kind, settings) in SAME_COSTS.items():
        if kind_of(cost) == f'mmdet.{kind}' and not _differences(cost, settings):
            return name
    return None


def _loss_settings(head: Any) -> dict[str, Any]:
    weights = {name: {'weight': getattr(head, f'loss_{name}').loss_weight} for name in SAME_LOSSES}
    points = {
        'num_points': head.num_points,
        'oversample_ratio': head.oversample_ratio,
        'importance_ratio': head.importance_sample_ratio,
    }
    # None takes a cost out, which the stock matcher may lack.
    costs: dict[str | None, Any] = dict.fromkeys(SAME_COSTS)
    costs |= {_cost_name(cost): {'weight': cost.weight} for cost in head.assigner.match_costs}
    return {
        'losses': {**weights, 'points': points},
        'matcher': {'costs': costs},
        'class_weight': head.loss_cls.class_weight,
    }
