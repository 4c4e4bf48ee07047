"""Check and complete the settings of a model.

The parts of a head share sizes, weights and numbers of points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from mmseg_m2f import core
from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.adapters.models.parts import PartConfig, resolve, resolve_attention
from mmseg_m2f.registry import MODELS, TASK_UTILS

_LOSS_TYPES = {'cls': 'ClassLoss', 'mask': 'PointMaskLoss', 'dice': 'PointDiceLoss'}
_COST_TYPES = {'cls': 'ClassCost', 'mask': 'PointMaskCost', 'dice': 'PointDiceCost'}
# Fidelity switches that belong to the images, which a head cannot reach.
_SWITCHES_OF_IMAGES = {'crop_offset', 'resize_backend', 'pad_value'}


class UnknownChannelsError(ValueError):
    """A head has no list of ``in_channels``, and a backbone cannot tell them."""


class MissingSizesError(ValueError):
    """A pixel decoder does not tell the sizes that the decoder has to share with it."""


def build_compat(compat: Mapping[str, Any] | None) -> core.CompatConfig:
    """Check the keys of ``compat``, and build its settings."""
    # MMEngine leaves the mark in place where the base config had nothing to delete.
    given = {key: value for key, value in (compat or {}).items() if key != '_delete_'}
    if of_images := sorted(given.keys() & _SWITCHES_OF_IMAGES):
        raise ValueError(
            f'compat of the head does not know {of_images}. crop_offset, resize_backend and '
            'pad_value are settings of transforms in the pipelines: FixedSizeCrop(offsets=..., '
            'pad_value=...), ResizeScale(backend=...) and ResizeShortestEdge(backend=...).'
        )
    check_keys('compat', given, [field.name for field in fields(core.CompatConfig)])
    return core.CompatConfig(**given)


def build_postprocess_config(test_cfg: Mapping[str, Any] | None) -> core.PostprocessConfig:
    """Check the keys of ``test_cfg``, and build the settings of the results."""
    given = test_cfg or {}
    check_keys('test_cfg', given, [field.name for field in fields(core.PostprocessConfig)])
    return core.PostprocessConfig(**given)


def resolve_pixel_decoder(
    config: PartConfig | None, in_channels: Sequence[int] | None
) -> dict[str, Any]:
    """Complete the config of a pixel decoder, and of the attention inside it if it has one."""
    if in_channels is None or isinstance(in_channels, int):
        raise UnknownChannelsError(
            f'in_channels of the head is {in_channels}. List the channels of the maps that it '
            'gets, stride 4 first (for ResNet-50: [256, 512, 1024, 2048]), or put the head into '
            'mmseg_m2f.SemanticSegmentor or mmseg_m2f.Mask2Former, which take them from their '
            'backbone.'
        )
    resolved = resolve(
        MODELS,
        config,
        'MSDeformAttnPixelDecoder',
        'pixel_decoder',
        in_channels=list(in_channels),
    )
    if 'attention' in resolved:
        resolved['attention'] = resolve_attention(resolved['attention'], resolved)
    return resolved


def resolve_decoder(
    config: PartConfig | None, pixel_decoder: nn.Module, num_classes: int, num_queries: int
) -> dict[str, Any]:
    """Give the decoder the sizes of the head and of the built pixel decoder."""
    given, owned = config or {}, {'num_classes': num_classes, 'num_queries': num_queries}
    for key, value in owned.items():
        if given.get(key, value) != value:
            raise ValueError(
                f'the head has {key} = {value}, its decoder {given[key]}: set it on the head only'
            )
    names = ('channels', 'num_levels')
    sizes = {name: getattr(pixel_decoder, name) for name in names if hasattr(pixel_decoder, name)}
    missing = [name for name in names if name not in {**sizes, **given}]
    if missing:
        raise MissingSizesError(
            f'pixel decoder {type(pixel_decoder).__name__} lacks the attributes {missing}. Set '
            'them in its class: channels of mask_features and of the maps of memory, and '
            'num_levels, the number of these maps. Or set them in decoder=dict(...) of the head.'
        )
    return resolve(MODELS, config, 'MaskedAttentionDecoder', 'decoder', **owned, **sizes)


def resolve_losses(losses: Mapping[str, PartConfig] | None) -> dict[str, dict[str, Any]]:
    """Complete the settings of the three losses and of the points."""
    given = losses or {}
    check_keys('losses', given, [*_LOSS_TYPES, 'points'])
    resolved = {
        name: resolve(MODELS, given.get(name), default, f'losses.{name}')
        for name, default in _LOSS_TYPES.items()
    }
    # The head owns the class weights, unless the loss itself was given some.
    for key in {'class_weight', 'no_object_weight'} - set(given.get('cls') or {}):
        resolved['cls'].pop(key, None)
    points = resolve(TASK_UTILS, given.get('points'), 'PointSampler', 'losses.points')
    return {**resolved, 'points': points}


def resolve_matcher(matcher: PartConfig | None, losses: Mapping[str, PartConfig]) -> dict[str, Any]:
    """Give the matcher the number of points and the weights of the resolved losses.

    Those that it has already stay.
    """
    shared = {key: value for key, value in losses['points'].items() if key == 'num_points'}
    resolved = resolve(TASK_UTILS, matcher, 'HungarianMatcher', 'matcher', **shared)
    if 'costs' in resolved:
        costs = {**{name: {} for name in _COST_TYPES}, **(resolved['costs'] or {})}
        resolved['costs'] = {
            name: _resolve_cost(name, cost, losses.get(name, {}))
            for name, cost in costs.items()
            if cost is not None  # None takes one of the default costs out
        }
    return resolved


def _resolve_cost(name: str, cost: PartConfig, loss: PartConfig) -> dict[str, Any]:
    where = f'matcher.costs.{name}'
    default = _COST_TYPES.get(name) or cost.get('type')
    if default is None:
        raise ValueError(f'{where} needs a type; {sorted(_COST_TYPES)} have one by default')
    shared = {'weight': loss['weight']} if 'weight' in loss else {}
    return resolve(TASK_UTILS, cost, default, where, **shared)
