"""Every part of the core as a registered type, buildable alone from a plain dict.

``resolve`` completes a part's dict with all defaults, so that what was built can be written down;
``build`` makes the part. A type without scope is looked up here first, then in the current scope.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import Registry
from torch import nn

from mmseg_m2f import core
from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.adapters.models.mmcv_attention import build_mmcv_attention, is_mmcv_attention
from mmseg_m2f.adapters.models.mmdet_losses import (
    MMDetClassLoss,
    MMDetMaskLoss,
    MMDetMatchCost,
    is_from_mmdet,
)
from mmseg_m2f.registry import MODELS, SCOPE, TASK_UTILS

PartConfig = Mapping[str, Any]

# What an attention part of the pixel decoder is told of its surroundings.
_ATTENTION_SIZES = ('channels', 'num_heads', 'num_levels', 'num_points')

# Keyword settings of a registered builder that collects them into a dataclass of the core.
_SETTINGS: dict[Callable[..., Any], type] = {}

MODELS.register_module(name='MSDeformAttn', module=core.MSDeformAttn)
MODELS.register_module(name='ClassLoss', module=core.ClassLoss)
MODELS.register_module(name='PointMaskLoss', module=core.PointMaskLoss)
MODELS.register_module(name='PointDiceLoss', module=core.PointDiceLoss)
TASK_UTILS.register_module(name='ClassCost', module=core.ClassCost)
TASK_UTILS.register_module(name='PointMaskCost', module=core.PointMaskCost)
TASK_UTILS.register_module(name='PointDiceCost', module=core.PointDiceCost)


@MODELS.register_module(name='MSDeformAttnPixelDecoder')
def build_pixel_decoder(
    in_channels: Sequence[int], attention: PartConfig | None = None, **settings: Any
) -> core.MSDeformAttnPixelDecoder:
    """The deformable pixel decoder; ``settings`` are the fields of ``PixelDecoderConfig``.

    ``attention`` is a part of its own: ``MSDeformAttn``, mmcv's ``MultiScaleDeformableAttention``
    or a registered module with the call signature of the first.
    """
    config = core.PixelDecoderConfig(**settings)
    sizes = {key: getattr(config, key) for key in _ATTENTION_SIZES}
    return core.MSDeformAttnPixelDecoder(
        in_channels, config, attention=lambda: _build_attention(attention, sizes)
    )


@MODELS.register_module(name='MaskedAttentionDecoder')
def build_decoder(**settings: Any) -> core.MaskedAttentionDecoder:
    """The masked-attention decoder; ``settings`` are the fields of ``DecoderConfig``."""
    return core.MaskedAttentionDecoder(core.DecoderConfig(**settings))


@TASK_UTILS.register_module(name='PointSampler')
def build_point_sampler(**settings: Any) -> core.PointSampler:
    """The importance sampler of the mask losses; ``settings`` are the fields of ``PointConfig``."""
    return core.PointSampler(core.PointConfig(**settings))


@TASK_UTILS.register_module(name='HungarianMatcher')
def build_matcher(
    costs: Mapping[str, PartConfig] | None = None, num_points: int = 12544, points: str = 'shared'
) -> core.HungarianMatcher:
    """The matcher; ``costs`` maps any names to match costs, default the paper's three."""
    if costs is None:
        return core.HungarianMatcher(None, num_points, points)
    built = [build(TASK_UTILS, cost, f'matcher.costs.{name}') for name, cost in costs.items()]
    adapted = [MMDetMatchCost(cost) if is_from_mmdet(cost) else cost for cost in built]
    matcher = core.HungarianMatcher(adapted, num_points, points)
    if not matcher.is_row_wise:
        foreign = [type(cost).__name__ for cost in built if not getattr(cost, 'row_wise', False)]
        print_log(
            f'{", ".join(foreign)} does not declare row_wise = True: the matcher evaluates the '
            'predictions one by one instead of all at once.',
            logger='current',
        )
    return matcher


_SETTINGS[build_pixel_decoder] = core.PixelDecoderConfig
_SETTINGS[build_decoder] = core.DecoderConfig
_SETTINGS[build_point_sampler] = core.PointConfig


def build(registry: Registry, config: PartConfig, where: str, **injected: Any) -> Any:
    """Build the part ``config`` describes; ``injected`` keys give way to those of ``config``."""
    cfg = {**injected, **config}
    _check_keys(registry, cfg, where)
    return registry.build({**cfg, 'type': _qualified(registry, cfg['type'])})


def build_mask_loss(config: PartConfig, where: str) -> nn.Module:
    """A mask loss of ours, of the user's, or of mmdet behind our contract."""
    loss = build(MODELS, config, where)
    if not isinstance(loss, core.RowLoss):
        print_log(f'{where}: {config["type"]} is called once per prediction.', logger='current')
    return MMDetMaskLoss(loss) if is_from_mmdet(loss) else loss


def build_class_loss(
    config: PartConfig,
    num_classes: int,
    class_weight: Sequence[float] | None,
    no_object_weight: float,
) -> nn.Module:
    """A class loss; ``ClassLoss`` learns the class weights from the head, others bring their own.

    Raises:
        ValueError: ``class_weight`` is set on the head but the loss is not ``ClassLoss``.
    """
    if _lookup(MODELS, config['type']) is core.ClassLoss:
        weights = {'class_weight': class_weight, 'no_object_weight': no_object_weight}
        return build(MODELS, config, 'losses.cls', num_classes=num_classes, **weights)
    if class_weight is not None:
        raise ValueError(
            f'class_weight of the head serves ClassLoss only; set it inside losses.cls for '
            f'{config["type"]!r}'
        )
    loss = build(MODELS, config, 'losses.cls')
    if is_from_mmdet(loss):
        return MMDetClassLoss(loss, num_classes, no_object_weight)
    return loss


def resolve(
    registry: Registry,
    config: PartConfig | None,
    default_type: str,
    where: str,
    **defaults: Any,
) -> dict[str, Any]:
    """``config`` completed with its type and every default.

    ``defaults`` come from the parts around it; they only apply to a part that knows the key.

    Raises:
        ValueError: a key the part does not know, with the list of those it does.
    """
    given = dict(config or {})
    # MMEngine leaves the mark in place where the base config had nothing to delete.
    given.pop('_delete_', None)
    given.setdefault('type', default_type)
    named, _, own = _parameters(_lookup(registry, given['type']))
    shared = {key: value for key, value in defaults.items() if key in named}
    resolved = {**own, **shared, **given}
    _check_keys(registry, resolved, where)
    return {'type': resolved.pop('type'), **resolved}


def resolve_pixel_decoder(config: PartConfig, in_channels: Sequence[int]) -> dict[str, Any]:
    """``resolve`` for a pixel decoder and the attention inside it, if it has one."""
    resolved = resolve(
        MODELS, config, 'MSDeformAttnPixelDecoder', 'pixel_decoder', in_channels=list(in_channels)
    )
    attention = resolved.get('attention')
    is_open = 'attention' in resolved and not is_mmcv_attention((attention or {}).get('type'))
    if is_open:
        sizes = {key: resolved[key] for key in _ATTENTION_SIZES if key in resolved}
        resolved['attention'] = resolve(
            MODELS, attention, 'MSDeformAttn', 'pixel_decoder.attention', **sizes
        )
    return resolved


def _build_attention(config: PartConfig | None, sizes: dict[str, int]) -> nn.Module:
    config = {'type': 'MSDeformAttn', **(config or {})}
    if is_mmcv_attention(config['type']):
        options = {key: value for key, value in config.items() if key != 'type'}
        return build_mmcv_attention(**{**sizes, **options})
    return build(MODELS, config, 'pixel_decoder.attention', **sizes)


def _qualified(registry: Registry, type_name: Any) -> Any:
    """Our scope in front of our own names: MMEngine would search the current scope instead."""
    is_ours = isinstance(type_name, str) and type_name in registry.module_dict
    return f'{SCOPE}.{type_name}' if is_ours else type_name


def _lookup(registry: Registry, type_name: Any) -> Callable[..., Any] | None:
    if not isinstance(type_name, str):
        return type_name
    return registry.get(_qualified(registry, type_name))


def _parameters(part: Callable[..., Any] | None) -> tuple[set[str], bool, dict[str, Any]]:
    """Names a part's signature has, whether it takes others as well, and its own defaults."""
    if part is None:
        return set(), True, {}
    parameters = inspect.signature(part).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = {p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    own = {n: parameters[n].default for n in parameters if n in names}
    settings = _SETTINGS.get(part)
    if settings is not None:
        fields = dataclasses.fields(settings)
        names |= {field.name for field in fields}
        own |= {field.name: field.default for field in fields}
    missing = (inspect.Parameter.empty, dataclasses.MISSING)
    defaults = {name: value for name, value in own.items() if value not in missing}
    return names, open_ended and settings is None, defaults


def _check_keys(registry: Registry, config: PartConfig, where: str) -> None:
    named, takes_others, _ = _parameters(_lookup(registry, config['type']))
    if not takes_others:
        check_keys(f'{where}: {config["type"]}', set(config) - {'type'}, sorted(named))
