"""A head's configuration to its four parts, and to the record of what was built."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from torch import nn

from mmseg_m2f import core
from mmseg_m2f.adapters.models import parts
from mmseg_m2f.adapters.models.parts import PartConfig
from mmseg_m2f.registry import MODELS, TASK_UTILS

_LOSS_TYPES = {'cls': 'ClassLoss', 'mask': 'PointMaskLoss', 'dice': 'PointDiceLoss'}
_COST_TYPES = {'cls': 'ClassCost', 'mask': 'PointMaskCost', 'dice': 'PointDiceCost'}
_COUNTS = {'official': core.count_targets, 'mmdet': core.count_matched}


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The keys every head shares, as the user gave them."""

    num_classes: int
    in_channels: Sequence[int]
    num_queries: int
    pixel_decoder: PartConfig
    decoder: PartConfig
    matcher: PartConfig
    losses: Mapping[str, PartConfig]
    class_weight: Sequence[float] | None
    no_object_weight: float
    compat: core.CompatConfig


class Assembly(NamedTuple):
    """The built parts (or the user's, with the same calls) and the whole configuration.

    ``resolved`` holds plain Python values only.
    """

    pixel_decoder: nn.Module
    decoder: core.MaskedAttentionDecoder
    matcher: Any
    criterion: core.MaskClassificationLoss
    resolved: dict[str, Any]


def assemble(config: HeadConfig) -> Assembly:
    """Complete the configuration with all defaults and build every part from it.

    Raises:
        ValueError: a key no part knows, a wrong size, a wrong number of class weights.
    """
    _check_owned_keys(config)
    pixel_decoder_cfg = parts.resolve_pixel_decoder(config.pixel_decoder, config.in_channels)
    pixel_decoder = parts.build(MODELS, pixel_decoder_cfg, 'pixel_decoder')
    decoder_cfg = _resolve_decoder(config, pixel_decoder)
    losses_cfg = _resolve_losses(config.losses)
    matcher_cfg = _resolve_matcher(config.matcher, losses_cfg)
    resolved = {
        **vars(config),
        'pixel_decoder': pixel_decoder_cfg,
        'decoder': decoder_cfg,
        'matcher': matcher_cfg,
        'losses': losses_cfg,
        'compat': asdict(config.compat),
    }
    decoder = parts.build(MODELS, decoder_cfg, 'decoder')
    if config.compat.init == 'mmdet':
        for part in (pixel_decoder, decoder):
            core.init_xavier_normal(part)
    return Assembly(
        pixel_decoder,
        decoder,
        parts.build(TASK_UTILS, matcher_cfg, 'matcher'),
        _build_criterion(config, losses_cfg),
        _plain(resolved),
    )


_OF_TRANSFORMS = {
    'crop_offset': "FixedSizeCrop(offsets='shared' or 'independent')",
    'resize_backend': "ResizeScale and ResizeShortestEdge(backend='pillow' or 'cv2')",
    'pad_value': 'FixedSizeCrop and PadToSize(pad_value=...), or Pad(pad_val=...) of mmseg',
}


def compat_config(compat: Mapping[str, Any] | None) -> core.CompatConfig:
    """The switches of ``compat``, those not given as the official code has them.

    Raises:
        ValueError: an unknown switch, with those there are, or a wrong value.
    """
    given = {key: value for key, value in (compat or {}).items() if key != '_delete_'}
    elsewhere = [
        f'{key} is {_OF_TRANSFORMS[key]}' for key in sorted(given) if key in _OF_TRANSFORMS
    ]
    if elsewhere:
        # The processes that load images have their pipeline before any head is asked.
        raise ValueError(
            f'compat of the head cannot reach the images: {"; ".join(elsewhere)}, in the '
            'pipelines of the data sets'
        )
    check_keys('compat', given, core.CompatConfig)
    return core.CompatConfig(**given)


def check_keys(where: str, given: Mapping[str, Any], settings: type) -> None:
    """Whether ``given`` has no key but fields of the dataclass ``settings``.

    Raises:
        ValueError: it has, with those there are.
    """
    known = [field.name for field in fields(settings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f'{where} does not know {unknown}; known keys: {known}')


def _check_owned_keys(config: HeadConfig) -> None:
    """The head owns what several parts have to agree on."""
    if isinstance(config.in_channels, int):
        raise ValueError(
            'in_channels must list the channels of the backbone maps, stride 4 first, got '
            f'{config.in_channels}'
        )
    for key in ('num_classes', 'num_queries'):
        value = getattr(config, key)
        if config.decoder.get(key, value) != value:
            raise ValueError(
                f'the head has {key} = {value}, its decoder {config.decoder[key]}: set it on the '
                'head only'
            )


def _resolve_decoder(config: HeadConfig, pixel_decoder: nn.Module) -> dict[str, Any]:
    names = ('channels', 'num_levels')
    sizes = {name: getattr(pixel_decoder, name) for name in names if hasattr(pixel_decoder, name)}
    return parts.resolve(
        MODELS,
        config.decoder,
        'MaskedAttentionDecoder',
        'decoder',
        num_classes=config.num_classes,
        num_queries=config.num_queries,
        **sizes,
    )


def _resolve_losses(losses: Mapping[str, PartConfig]) -> dict[str, dict[str, Any]]:
    known = {*_LOSS_TYPES, 'points'}
    unknown = sorted(set(losses) - known)
    if unknown:
        raise ValueError(f'losses does not know {unknown}; known keys: {sorted(known)}')
    resolved = {
        name: parts.resolve(MODELS, losses.get(name), default, f'losses.{name}')
        for name, default in _LOSS_TYPES.items()
    }
    # The head owns the class weights, unless the loss itself was given some.
    for key in ('class_weight', 'no_object_weight'):
        if key not in (losses.get('cls') or {}):
            resolved['cls'].pop(key, None)
    resolved['points'] = parts.resolve(
        TASK_UTILS, losses.get('points'), 'PointSampler', 'losses.points'
    )
    return resolved


def _resolve_matcher(matcher: PartConfig, losses: Mapping[str, PartConfig]) -> dict[str, Any]:
    """The matcher draws as many points as the losses and weighs as they do, unless told."""
    shared = {k: v for k, v in losses['points'].items() if k == 'num_points'}
    resolved = parts.resolve(TASK_UTILS, matcher, 'HungarianMatcher', 'matcher', **shared)
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
    weight = {'weight': loss['weight']} if 'weight' in loss else {}
    return parts.resolve(TASK_UTILS, cost, default, where, **weight)


def _build_criterion(
    config: HeadConfig, losses: Mapping[str, PartConfig]
) -> core.MaskClassificationLoss:
    return core.MaskClassificationLoss(
        parts.build_class_loss(
            losses['cls'], config.num_classes, config.class_weight, config.no_object_weight
        ),
        parts.build_mask_loss(losses['mask'], 'losses.mask'),
        parts.build_mask_loss(losses['dice'], 'losses.dice'),
        parts.build(TASK_UTILS, losses['points'], 'losses.points'),
        _COUNTS[config.compat.num_masks_mode],
    )


def _plain(value: Any) -> Any:
    """Nested plain Python values; anything else by its name or ``repr``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
