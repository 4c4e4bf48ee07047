"""Settings of the core, one frozen dataclass per part. Defaults are the paper's (arXiv:2112.01527).

The official yaml files set these values; the class defaults of the official Python code differ
(``mask2former/config.py``) and are not used by any published model.
"""

from dataclasses import dataclass, fields
from typing import Any

POINT_MODES = ('shared', 'per_prediction')
COMPAT_MODES = ('official', 'mmdet')
MASK_FORMATS = ('bitmap', 'rle')


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_types(config: Any, part: str) -> None:
    """Refuse switches that are not True or False, and sizes that are no positive integers.

    ``num_layers`` may be 0.
    """
    for field in fields(config):
        name, value = f'{part}.{field.name}', getattr(config, field.name)
        if field.type is bool:
            _require(isinstance(value, bool), f'{name} must be True or False, got {value!r}')
        elif field.type is int:
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if field.name == 'num_layers':
                _require(is_integer and value >= 0, f'{name} must be 0 or more, got {value!r}')
            else:
                message = f'{name} must be a positive integer, got {value!r}'
                _require(is_integer and value > 0, message)


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """Multi-scale deformable attention pixel decoder (paper section 3.2.2, appendix).

    ``num_levels`` feature maps, from the coarsest, go through the encoder; the finer ones are
    added by a feature pyramid. ``ffn_dim`` is 1024 in the official code whatever its yaml says.
    ``checkpointing`` keeps only the input of each encoder layer for the backward pass and computes
    the layer again there: less memory, more time, the same gradients. ``mixed_precision`` lets an
    autocast reach the pixel decoder, which the official code computes in float32 throughout; the
    residual stream and the sampling locations stay in float32 even so.
    """

    channels: int = 256
    num_layers: int = 6
    num_heads: int = 8
    num_points: int = 4
    num_levels: int = 3
    ffn_dim: int = 1024
    norm_groups: int = 32
    checkpointing: bool = False
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        _check_types(self, 'pixel_decoder')
        divisors = (4, 2 * self.num_heads, self.norm_groups)
        _require(
            all(self.channels % divisor == 0 for divisor in divisors),
            f'pixel_decoder.channels must be a multiple of 4, of 2*num_heads ({divisors[1]}) and '
            f'of norm_groups ({divisors[2]}), got {self.channels}',
        )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Masked-attention transformer decoder (paper section 3.2): nine layers, ten predictions.

    ``checkpointing``: see ``PixelDecoderConfig``.
    """

    num_classes: int
    channels: int = 256
    num_queries: int = 100
    num_layers: int = 9
    num_heads: int = 8
    num_levels: int = 3
    ffn_dim: int = 2048
    checkpointing: bool = False

    def __post_init__(self) -> None:
        _check_types(self, 'decoder')
        _require(
            self.channels % self.num_heads == 0 and self.channels % 2 == 0,
            f'decoder.channels must be even and a multiple of num_heads ({self.num_heads}), '
            f'got {self.channels}',
        )


@dataclass(frozen=True, kw_only=True)
class PointConfig:
    """Settings of the points of the mask losses (paper section 3.3, PointRend).

    ``oversample_ratio * num_points`` candidates are drawn, ``importance_ratio * num_points`` of
    them kept where the prediction is least certain, and the rest drawn anew.
    """

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75

    def __post_init__(self) -> None:
        _check_types(self, 'points')
        oversample, importance = self.oversample_ratio, self.importance_ratio
        _require(oversample >= 1, f'points.oversample_ratio must be at least 1, got {oversample}')
        _require(
            0 <= importance <= 1, f'points.importance_ratio must lie in [0, 1], got {importance}'
        )


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """Settings of the results and their thresholds: the keys of ``test_cfg``.

    ``object_mask_thr`` (a query's class probability must exceed it) and ``overlap_thr`` (won area
    over mask area must reach it) are for panoptic; ``score_thr`` (a score must reach it),
    ``max_per_image`` and ``non_overlap`` (each pixel to its best instance) for instances.
    ``mask_format`` of the instances: ``'bitmap'``, one boolean tensor; or ``'rle'``, a list of
    COCO's run lengths, which large images with many instances need.
    """

    semantic_on: bool = True
    instance_on: bool = True
    panoptic_on: bool = True
    object_mask_thr: int | float = 0.8
    overlap_thr: int | float = 0.8
    score_thr: int | float = 0.0
    max_per_image: int = 100
    non_overlap: bool = False
    mask_format: str = 'bitmap'

    def __post_init__(self) -> None:
        _check_types(self, 'test_cfg')
        for name in ('object_mask_thr', 'overlap_thr', 'score_thr'):
            value = getattr(self, name)
            is_share = isinstance(value, int | float) and 0 <= value <= 1
            _require(is_share, f'test_cfg.{name} must lie in [0, 1], got {value!r}')
        _require(
            self.mask_format in MASK_FORMATS,
            f'test_cfg.mask_format must be one of {MASK_FORMATS}, got {self.mask_format!r}',
        )
        _require(
            not (self.non_overlap and self.mask_format == 'rle'),
            "test_cfg.non_overlap needs all masks at once: set mask_format='bitmap'",
        )


@dataclass(frozen=True, kw_only=True)
class CompatConfig:
    """Choices between the official code and MMDetection: the keys of a head's ``compat``.

    ``init``: attention and feed-forward weights are Xavier-uniform (official) or Xavier-normal.
    ``num_masks_mode``: the mask losses are divided by the number of targets (official) or by that
    of matched targets, where an image without any counts as one. ``keep_empty_gt``: a target whose
    mask a crop has emptied is still to be found. ``panoptic_mask_intersection``: a panoptic segment
    ends where its mask does; if False, it keeps all the pixels its query leads.
    """

    init: str = 'official'
    num_masks_mode: str = 'official'
    keep_empty_gt: bool = True
    panoptic_mask_intersection: bool = True

    def __post_init__(self) -> None:
        _check_types(self, 'compat')
        for name in ('init', 'num_masks_mode'):
            value = getattr(self, name)
            message = f'compat.{name} must be one of {COMPAT_MODES}, got {value!r}'
            _require(value in COMPAT_MODES, message)
