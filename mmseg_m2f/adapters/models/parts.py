"""Register the parts of the core, complete their settings with all defaults, and build them.

A part is built from a plain dict. A type without scope is looked up here first, then in the
default scope of the run.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import Registry
from torch import nn

from mmseg_m2f import core
from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.adapters.models.mmcv_attention import build_mmcv_attention
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

for _part in (core.MSDeformAttn, core.ClassLoss, core.PointMaskLoss, core.PointDiceLoss):
    MODELS.register_module(module=_part)
for _cost in (core.ClassCost, core.PointMaskCost, core.PointDiceCost):
    TASK_UTILS.register_module(module=_cost)
MODELS.register_module(name='MultiScaleDeformableAttention', module=build_mmcv_attention)


def _with_fields_of(config: type) -> Callable[[Any], Any]:
    """Put the fields of a dataclass in the place of ``**settings`` in a builder's signature."""

    def decorate(builder: Any) -> Any:
        own = [p for p in inspect.signature(builder).parameters.values() if p.kind != p.VAR_KEYWORD]
        settings = inspect.signature(config).parameters.values()
        builder.__signature__ = inspect.Signature([*own, *settings])
        return builder

    return decorate


@MODELS.register_module(name='MSDeformAttnPixelDecoder')
@_with_fields_of(core.PixelDecoderConfig)
def build_pixel_decoder(
    in_channels: Sequence[int], attention: PartConfig | None = None, **settings: Any
) -> core.MSDeformAttnPixelDecoder:
    """Build the deformable pixel decoder.

    ``in_channels`` are those of the backbone's maps, stride 4 first. ``attention`` is a part:
    ``MSDeformAttn``, mmcv's ``MultiScaleDeformableAttention``, or a module called like the first.
    """
    config = core.PixelDecoderConfig(**settings)
    resolved = resolve_attention(attention, vars(config))
    return core.MSDeformAttnPixelDecoder(
        in_channels, config, attention=lambda: build(MODELS, resolved)
    )


@MODELS.register_module(name='MaskedAttentionDecoder')
@_with_fields_of(core.DecoderConfig)
def build_decoder(**settings: Any) -> core.MaskedAttentionDecoder:
    """Build the masked-attention decoder."""
    return core.MaskedAttentionDecoder(core.DecoderConfig(**settings))


@TASK_UTILS.register_module(name='PointSampler')
@_with_fields_of(core.PointConfig)
def build_point_sampler(**settings: Any) -> core.PointSampler:
    """Build the point sampler of the mask losses."""
    return core.PointSampler(core.PointConfig(**settings))


@TASK_UTILS.register_module(name='HungarianMatcher')
def build_matcher(
    costs: Mapping[str, PartConfig] | None = None, num_points: int = 12544, points: str = 'shared'
) -> core.HungarianMatcher:
    """Build the matcher; ``costs`` maps names to match costs. None: the three of the paper."""
    if costs is None:
        return core.HungarianMatcher(None, num_points, points)
    built = [build(TASK_UTILS, cost) for cost in costs.values()]
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


def build(registry: Registry, config: PartConfig) -> Any:
    """Build the part that ``config`` describes."""
    return registry.build({**config, 'type': _qualified(registry, config['type'])})


def build_mask_loss(config: PartConfig) -> nn.Module:
    """Build a mask loss: ours, the user's, or mmdet's."""
    loss = build(MODELS, config)
    if not isinstance(loss, core.RowLoss):
        print_log(f'{config["type"]} is called once per prediction.', logger='current')
    return MMDetMaskLoss(loss) if is_from_mmdet(loss) else loss


def build_class_loss(
    config: PartConfig,
    num_classes: int,
    class_weight: Sequence[float] | None,
    no_object_weight: float,
) -> nn.Module:
    """Build a class loss. Only ``ClassLoss`` takes the class weights of the head."""
    if lookup(MODELS, config['type']) is core.ClassLoss:
        weights = {'class_weight': class_weight, 'no_object_weight': no_object_weight}
        return build(MODELS, {'num_classes': num_classes, **weights, **config})
    if class_weight is not None:
        raise ValueError(
            f'class_weight of the head is for ClassLoss only: set it inside losses.cls for '
            f'{config["type"]!r}'
        )
    loss = build(MODELS, config)
    if is_from_mmdet(loss):
        return MMDetClassLoss(loss, num_classes, no_object_weight)
    return loss


def resolve(
    registry: Registry,
    config: PartConfig | None,
    default_type: str,
    where: str,
    **shared: Any,
) -> dict[str, Any]:
    """Return ``config`` completed with its type and every default.

    ``default_type`` is the part if ``config`` has no type; ``where`` names it in error messages.
    Of ``shared``, values of the parts around it, it gets those that it has keys for.
    """
    given = {'type': default_type, **(config or {})}
    # MMEngine leaves the mark in place where the base config had nothing to delete.
    given.pop('_delete_', None)
    part = lookup(registry, given['type'])
    if part is None:
        return given  # MMEngine says so when it is built
    parameters = inspect.signature(part).parameters.values()
    named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_keys(f'{where}: {given["type"]}', given.keys() - {'type'}, sorted(named))
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    known = {key: value for key, value in shared.items() if key in named}
    return {'type': given['type'], **defaults, **known, **given}


def resolve_attention(config: PartConfig | None, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the config of the pixel decoder's attention by the sizes of the pixel decoder."""
    shared = {key: sizes[key] for key in _ATTENTION_SIZES if key in sizes}
    return resolve(MODELS, config, 'MSDeformAttn', 'pixel_decoder.attention', **shared)


def lookup(registry: Registry, type_name: Any) -> Callable[..., Any] | None:
    """Return the class or function of a type; None if it is not registered."""
    name = _qualified(registry, type_name)
    return registry.get(name) if isinstance(name, str) else name


def _qualified(registry: Registry, type_name: Any) -> Any:
    """Put our scope before our own names: MMEngine would search the default scope instead."""
    if not isinstance(type_name, str):
        return type_name
    name = type_name.removeprefix('mmcv.')  # mmcv registers its modules without a scope
    return f'{SCOPE}.{name}' if name in registry.module_dict else name
