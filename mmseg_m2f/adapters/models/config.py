"""Turn the config of a head into its parts, and into a record of what was built."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from torch import nn

from mmseg_m2f import core
from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.adapters.models import parts
from mmseg_m2f.adapters.models.parts import PartConfig
from mmseg_m2f.registry import MODELS, TASK_UTILS

_LOSS_TYPES = {'cls': 'ClassLoss', 'mask': 'PointMaskLoss', 'dice': 'PointDiceLoss'}
_COST_TYPES = {'cls': 'ClassCost', 'mask': 'PointMaskCost', 'dice': 'PointDiceCost'}
_COUNTS = {'official': core.count_targets, 'mmdet': core.count_matched}
_RESULTS = ('semantic_on', 'instance_on', 'panoptic_on')
# The attributes of a pixel decoder that the decoder's sizes are taken from.
_SHARED_SIZES = ('channels', 'num_levels')
# Differences from MMDetection that users look for in `compat`, but that transforms have.
_TRANSFORM_SETTINGS = {
    'crop_offset': "FixedSizeCrop(offsets='shared' or 'independent')",
    'resize_backend': "ResizeScale and ResizeShortestEdge(backend='pillow' or 'cv2')",
    'pad_value': 'FixedSizeCrop and PadToSize(pad_value=...), or Pad(pad_val=...) of mmseg',
}


class UnknownChannelsError(ValueError):
    """A head has no ``in_channels``, and they cannot be taken from a built backbone."""


class MissingSizesError(ValueError):
    """A pixel decoder does not tell the sizes that the decoder has to share with it."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The keys that both heads have.

    Args:
        num_classes: K, without no-object.
        in_channels: channels of the maps that the head gets, stride 4 first. `SemanticSegmentor`
            and `Mask2Former` take them from their built backbone and neck if this is None.
        num_queries: Q.
        pixel_decoder, decoder, matcher: settings of the parts; ``type`` replaces a part.
        losses: ``cls``, ``mask``, ``dice`` and ``points``, each the settings of a part. The
            matcher uses the same weights and number of points unless it is given others.
        class_weight: K numbers, or K + 1 with no-object last; None: all 1.
        no_object_weight: weight of no-object in the class loss.
        compat: choices in which MMDetection differs from the official code, see
            `core.CompatConfig`.
    """

    num_classes: int
    in_channels: Sequence[int] | None = None
    num_queries: int = 100
    pixel_decoder: PartConfig = field(default_factory=dict)
    decoder: PartConfig = field(default_factory=dict)
    matcher: PartConfig = field(default_factory=dict)
    losses: Mapping[str, PartConfig] = field(default_factory=dict)
    class_weight: Sequence[float] | None = None
    no_object_weight: float = 0.1
    compat: core.CompatConfig = field(default_factory=core.CompatConfig)


class Assembly(NamedTuple):
    """The built parts of a head (ours or the user's) and its complete config.

    ``resolved`` holds plain Python values only.
    """

    pixel_decoder: nn.Module
    decoder: core.MaskedAttentionDecoder
    matcher: Any
    criterion: core.MaskClassificationLoss
    resolved: dict[str, Any]


def head_config(head: type, own: Mapping[str, Any], settings: Mapping[str, Any]) -> HeadConfig:
    """Check the settings of a head and complete them with the defaults.

    Args:
        head: the class of the head, for error messages.
        own: the keys that only this head has.
        settings: keys of `HeadConfig`; None stands for the default.

    Raises:
        ValueError: an unknown key, here or in ``compat``.
    """
    known = [field.name for field in fields(HeadConfig)]
    check_keys(head.__name__, settings, [*known, *own, 'init_cfg'])
    given = {key: value for key, value in settings.items() if value is not None}
    return HeadConfig(**{**given, 'compat': _compat_config(given.get('compat', {}))})


def postprocess_config(
    test_cfg: Mapping[str, Any] | core.PostprocessConfig | None,
) -> core.PostprocessConfig:
    """Build the settings of the post-processing from a detector's ``test_cfg``.

    Raises:
        ValueError: an unknown key, a value out of range, or all results switched off.
    """
    config = test_cfg
    if not isinstance(config, core.PostprocessConfig):
        given = config or {}
        check_keys('test_cfg', given, [field.name for field in fields(core.PostprocessConfig)])
        config = core.PostprocessConfig(**given)
    if not any(getattr(config, name) for name in _RESULTS):
        raise ValueError(
            f'test_cfg switches all results off: at least one of {list(_RESULTS)} must be True'
        )
    return config


def assemble(config: HeadConfig) -> Assembly:
    """Complete ``config`` with all defaults of the parts and build every part from it.

    Raises:
        ValueError: a key that no part knows, a wrong size, a wrong number of class weights.
        UnknownChannelsError: ``in_channels`` is None.
        MissingSizesError: the pixel decoder lacks ``channels`` or ``num_levels``.
    """
    in_channels = _check_in_channels(config.in_channels)
    pixel_decoder_cfg = parts.resolve_pixel_decoder(config.pixel_decoder, in_channels)
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


def _compat_config(compat: Mapping[str, Any]) -> core.CompatConfig:
    # MMEngine leaves the mark in place where the base config had nothing to delete.
    given = {key: value for key, value in compat.items() if key != '_delete_'}
    misplaced = [
        f'{key} is {transforms}' for key, transforms in _TRANSFORM_SETTINGS.items() if key in given
    ]
    if misplaced:
        # The processes that load images build their pipeline without the head.
        raise ValueError(
            f'compat has settings that belong to transforms: {"; ".join(misplaced)}. Set them in '
            'the pipelines of the data sets.'
        )
    check_keys('compat', given, [field.name for field in fields(core.CompatConfig)])
    return core.CompatConfig(**given)


def _check_in_channels(in_channels: Sequence[int] | None) -> Sequence[int]:
    if in_channels is None:
        raise UnknownChannelsError(
            'in_channels of the head is not set. List the channels of the maps that it gets, '
            'stride 4 first (for ResNet-50: [256, 512, 1024, 2048]), or put the head into '
            'mmseg_m2f.SemanticSegmentor or mmseg_m2f.Mask2Former, which take them from their '
            'backbone.'
        )
    if isinstance(in_channels, int):
        raise ValueError(
            'in_channels must list the channels of the maps that the head gets, stride 4 first, '
            f'got {in_channels}'
        )
    return in_channels


def _resolve_decoder(config: HeadConfig, pixel_decoder: nn.Module) -> dict[str, Any]:
    """Give the decoder the sizes that the head and the pixel decoder have."""
    owned = {'num_classes': config.num_classes, 'num_queries': config.num_queries}
    for key, value in owned.items():
        if config.decoder.get(key, value) != value:
            raise ValueError(
                f'the head has {key} = {value}, its decoder {config.decoder[key]}: set it on the '
                'head only'
            )
    sizes = {
        name: getattr(pixel_decoder, name) for name in _SHARED_SIZES if hasattr(pixel_decoder, name)
    }
    missing = [name for name in _SHARED_SIZES if name not in {**sizes, **config.decoder}]
    if missing:
        raise MissingSizesError(
            f'pixel decoder {type(pixel_decoder).__name__} lacks the attributes {missing}. Set '
            'them in its class: channels of mask_features and of the maps of memory, and '
            'num_levels, the number of these maps. Or set them in decoder=dict(...) of the head.'
        )
    return parts.resolve(
        MODELS, config.decoder, 'MaskedAttentionDecoder', 'decoder', **owned, **sizes
    )


def _resolve_losses(losses: Mapping[str, PartConfig]) -> dict[str, dict[str, Any]]:
    check_keys('losses', losses, [*_LOSS_TYPES, 'points'])
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
    """Give the matcher the number of points and the weights of the losses, unless it has its own.

    ``losses`` are resolved.
    """
    shared = {key: value for key, value in losses['points'].items() if key == 'num_points'}
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
    """Return nested plain Python values; anything else by its name or ``repr``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
