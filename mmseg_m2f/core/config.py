"""Settings of the core, one frozen dataclass per part. Defaults are the paper's (arXiv:2112.01527).

The official yaml files set these values; the class defaults of the official Python code differ
(``mask2former/config.py``) and are not used by any published model.
"""

from dataclasses import dataclass

POINT_MODES = ('shared', 'per_prediction')
COMPAT_MODES = ('official', 'mmdet')
MASK_FORMATS = ('bitmap', 'rle')


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_switch(value: object, name: str) -> None:
    _require(isinstance(value, bool), f'{name} must be True or False, got {value!r}')


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
        for name in ('channels', 'num_heads', 'num_points', 'num_levels', 'ffn_dim', 'norm_groups'):
            value = getattr(self, name)
            _require(value > 0, f'pixel_decoder.{name} must be positive, got {value}')
        _require(
            self.num_layers >= 0,
            f'pixel_decoder.num_layers must not be negative, got {self.num_layers}',
        )
        _require(
            self.channels % (2 * self.num_heads) == 0 and self.channels % self.norm_groups == 0,
            f'pixel_decoder.channels must be a multiple of 2*num_heads ({2 * self.num_heads}) and '
            f'of norm_groups ({self.norm_groups}), got {self.channels}',
        )
        _require_switch(self.checkpointing, 'pixel_decoder.checkpointing')
        _require_switch(self.mixed_precision, 'pixel_decoder.mixed_precision')
        _require(
            self.channels % 4 == 0,
            f'pixel_decoder.channels must be a multiple of 4, got {self.channels}',
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
        sizes = ('num_classes', 'channels', 'num_queries', 'num_heads', 'num_levels', 'ffn_dim')
        for name in sizes:
            value = getattr(self, name)
            _require(value > 0, f'{name} must be positive, got {value}')
        _require(
            self.num_layers >= 0, f'decoder.num_layers must not be negative, got {self.num_layers}'
        )
        _require(
            self.channels % self.num_heads == 0 and self.channels % 2 == 0,
            f'decoder.channels must be even and a multiple of num_heads ({self.num_heads}), '
            f'got {self.channels}',
        )
        _require_switch(self.checkpointing, 'decoder.checkpointing')


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
        _require(self.num_points > 0, f'num_points must be positive, got {self.num_points}')
        _require(
            self.oversample_ratio >= 1,
            f'oversample_ratio must be at least 1, got {self.oversample_ratio}',
        )
        _require(
            0 <= self.importance_ratio <= 1,
            f'importance_ratio must lie in [0, 1], got {self.importance_ratio}',
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
        for name in ('semantic_on', 'instance_on', 'panoptic_on', 'non_overlap'):
            _require_switch(getattr(self, name), f'test_cfg.{name}')
        for name in ('object_mask_thr', 'overlap_thr', 'score_thr'):
            value = getattr(self, name)
            is_number = isinstance(value, int | float)
            _require(
                is_number and 0 <= value <= 1, f'test_cfg.{name} must lie in [0, 1], got {value!r}'
            )
        number = self.max_per_image
        is_count = isinstance(number, int) and not isinstance(number, bool) and number > 0
        _require(is_count, f'test_cfg.max_per_image must be a positive integer, got {number!r}')
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
        for name in ('init', 'num_masks_mode'):
            value = getattr(self, name)
            _require(
                value in COMPAT_MODES, f'compat.{name} must be one of {COMPAT_MODES}, got {value!r}'
            )
        for name in ('keep_empty_gt', 'panoptic_mask_intersection'):
            _require_switch(getattr(self, name), f'compat.{name}')
