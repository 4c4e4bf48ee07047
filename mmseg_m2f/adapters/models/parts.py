"""Register every part of the core, so that each can be built alone from a plain dict.

``resolve`` completes the dict of a part with all defaults, for the record; ``build`` builds the
part. A type without scope is looked up here first, then in the default scope of the run.
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

# The sizes that the pixel decoder gives to its attention.
_ATTENTION_SIZES = ('channels', 'num_heads', 'num_levels', 'num_points')

# The dataclass whose fields are the keyword settings of a registered builder.
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
    """Build the deformable pixel decoder.

    Args:
        in_channels: channels of the backbone's maps, stride 4 first.
        attention: settings of a part: ``MSDeformAttn``, mmcv's ``MultiScaleDeformableAttention``
            or a registered module that is called like the first.
        settings: the fields of `core.PixelDecoderConfig`.
    """
    config = core.PixelDecoderConfig(**settings)
    sizes = {key: getattr(config, key) for key in _ATTENTION_SIZES}
    return core.MSDeformAttnPixelDecoder(
        in_channels, config, attention=lambda: _build_attention(attention, sizes)
    )


@MODELS.register_module(name='MaskedAttentionDecoder')
def build_decoder(**settings: Any) -> core.MaskedAttentionDecoder:
    """Build the masked-attention decoder; ``settings`` are fields of `core.DecoderConfig`."""
    return core.MaskedAttentionDecoder(core.DecoderConfig(**settings))


@TASK_UTILS.register_module(name='PointSampler')
def build_point_sampler(**settings: Any) -> core.PointSampler:
    """Build the point sampler of the mask losses; ``settings`` are fields of `core.PointConfig`."""
    return core.PointSampler(core.PointConfig(**settings))


@TASK_UTILS.register_module(name='HungarianMatcher')
def build_matcher(
    costs: Mapping[str, PartConfig] | None = None, num_points: int = 12544, points: str = 'shared'
) -> core.HungarianMatcher:
    """Build the matcher; ``costs`` maps names to match costs. None: the three of the paper."""
    if costs is None:
        return core.HungarianMatcher(None, num_points, points)
    built = [build(TASK_UTILS, cost, f'matcher.costs.{name}') for name, cost in costs.items()]
    adapted = [MMDetMatchCost(cost) if is_from_mmdet(cost) else cost for cost in built]
    matcher = core.HungarianMatcher(adapted, num_points, points)
    if not matcher.is_row_wise:
        foreign = [type(cost).__name__ for cost in built if not getattr(cost, 'row_wise', False)]
        print_log(
            f'{", ".join(foreign)} does not declare row_wise = True, so the matcher calls it once '
            'per prediction instead of once for all.',
            logger='current',
        )
    return matcher


_SETTINGS[build_pixel_decoder] = core.PixelDecoderConfig
_SETTINGS[build_decoder] = core.DecoderConfig
_SETTINGS[build_point_sampler] = core.PointConfig


def build(registry: Registry, config: PartConfig, where: str, **injected: Any) -> Any:
    """Build the part that ``config`` describes; keys of ``config`` win over ``injected`` ones.

    Raises:
        ValueError: a key that the part does not know.
    """
    cfg = {**injected, **config}
    _check_keys(registry, cfg, where)
    return registry.build({**cfg, 'type': _qualified(registry, cfg['type'])})


def build_mask_loss(config: PartConfig, where: str) -> nn.Module:
    """Build a mask loss: ours, the user's, or mmdet's."""
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
    """Build a class loss. ``ClassLoss`` takes the class weights of the head, others their own.

    Raises:
        ValueError: the head has ``class_weight``, but the loss is not ``ClassLoss``.
    """
    if _lookup(MODELS, config['type']) is core.ClassLoss:
        weights = {'class_weight': class_weight, 'no_object_weight': no_object_weight}
        return build(MODELS, config, 'losses.cls', num_classes=num_classes, **weights)
    if class_weight is not None:
        raise ValueError(
            f'class_weight of the head is for ClassLoss only: set it inside losses.cls for '
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
    """Return ``config`` completed with its type and every default.

    Args:
        registry: knows the types.
        config: settings of the user.
        default_type: the part if ``config`` has no type.
        where: the part of the config, for error messages.
        defaults: values that the parts around it need; a part that does not know a key ignores it.

    Raises:
        ValueError: a key that the part does not know.
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
    """Complete the config of a pixel decoder, and of the attention inside it if it has one."""
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
    """Put our scope before our own names: MMEngine would search the default scope instead."""
    is_ours = isinstance(type_name, str) and type_name in registry.module_dict
    return f'{SCOPE}.{type_name}' if is_ours else type_name


def _lookup(registry: Registry, type_name: Any) -> Callable[..., Any] | None:
    if not isinstance(type_name, str):
        return type_name
    return registry.get(_qualified(registry, type_name))


def _parameters(part: Callable[..., Any] | None) -> tuple[set[str], bool, dict[str, Any]]:
    """Return the keys of a part, whether it takes other keys as well, and its own defaults."""
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
