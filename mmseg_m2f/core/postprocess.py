"""From mask logits to full size, in the official order of operations.

All of post-processing treats one image and the last prediction. Full size is reached for a few
queries at a time through a ``MaskRestorer``, or for a few rows of all queries. The order of
operations is that of the model:

* semantic-only model: ``resize_masks`` to the network input, the semantic scores, then
  ``restore_scores`` (or the framework's own resizing) to the original size;
* any other model: ``restore_masks`` to the original size, then whatever is asked for.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.structures import ImageGeometry, upcast_half

# Mask logits ``(q, h, w)`` to full size ``(q, H, W)``: a new tensor, which may be overwritten.
# It must treat each query alone, and take none (q = 0) as well.
MaskRestorer = Callable[[Tensor], Tensor]

# What exists at full size at a time, in queries and in floats (256 MiB).
MAX_QUERIES, MAX_FLOATS = 25, 2**26
# On a CPU what its caches hold (16 MiB): the passes over it take half the time.
CACHED_FLOATS = 2**22
# Rows: each band interpolates a row or two beyond its own.
MIN_BAND = 8
# Of the mask logits.
STRIDE = 4


def resize_masks(
    mask_logits: Float[Tensor, 'q h w'], size: tuple[int, int]
) -> Float[Tensor, 'q H W']:
    """Bilinearly to ``size``, ``align_corners=False``."""
    resized = F.interpolate(mask_logits[:, None], size=size, mode='bilinear', align_corners=False)
    return resized[:, 0]


def restore_masks(
    mask_logits: Float[Tensor, 'q h w'], geometry: ImageGeometry
) -> Float[Tensor, 'q H W']:
    """To the network input, crop to the image, to the original size: two bilinear steps.

    One step would be cheaper and is not the same.

    Source: official ``maskformer_model.py``, detectron2's ``sem_seg_postprocess``.
    """
    return _uncrop(resize_masks(mask_logits, geometry.padded), geometry)


def restore_rows(
    mask_logits: Float[Tensor, 'q h w'], geometry: ImageGeometry, rows: range
) -> Float[Tensor, 'q rows W']:
    """``restore_masks(mask_logits, geometry)[:, rows]``, without the other rows.

    Up to rounding: the rows are interpolated before the columns, not with them.
    """
    height, width = geometry.resized
    every_line = range(mask_logits.shape[1])
    if geometry.resized == geometry.original:
        return some_rows(mask_logits, every_line, every_line, geometry.padded, rows)[:, :, :width]
    read = read_rows(geometry, rows)
    image = some_rows(mask_logits, every_line, every_line, geometry.padded, read)[:, :, :width]
    return some_rows(image, read, range(height), geometry.original, rows)


def read_rows(geometry: ImageGeometry, rows: range) -> range:
    """Of the resized image, what resizing reads for ``rows`` of the original.

    And one more on each side for rounding.
    """
    height = geometry.resized[0]
    scale = height / geometry.original[0]
    first = max(int((rows.start + 0.5) * scale - 0.5) - 1, 0)
    last = min(int((rows.stop - 0.5) * scale - 0.5) + 2, height - 1)
    return range(first, last + 1)


def some_rows(
    maps: Float[Tensor, 'n lines w'], held: range, whole: range, size: tuple[int, int], rows: range
) -> Float[Tensor, 'n rows W']:
    """Of maps of the lines ``whole``, of which only ``held`` are given, resized: the ``rows``."""
    centre = torch.arange(rows.start, rows.stop, device=maps.device, dtype=maps.dtype) + 0.5
    position = (centre * (len(whole) / size[0]) - 0.5).clamp(min=0)
    above = position.long()
    share = (position - above)[:, None]
    below = (above + 1).clamp(max=whole.stop - 1)
    lines = torch.lerp(maps[:, above - held.start], maps[:, below - held.start], share)
    return resize_masks(lines, (len(rows), size[1]))  # in width alone: the height is reached


def restore_scores(
    scores: Float[Tensor, 'K Hp Wp'], geometry: ImageGeometry
) -> Float[Tensor, 'K H W']:
    """Semantic scores of the network input to the original size: crop, then bilinear."""
    return _uncrop(scores, geometry)


def _uncrop(maps: Float[Tensor, 'n Hp Wp'], geometry: ImageGeometry) -> Float[Tensor, 'n H W']:
    height, width = geometry.resized
    maps = maps[:, :height, :width]
    if geometry.resized == geometry.original:
        return maps  # resizing to the same size changes no bit
    return resize_masks(maps, geometry.original)


def restored_size(mask_logits: Float[Tensor, 'q h w'], restore: MaskRestorer) -> tuple[int, int]:
    """The size ``restore`` leads to, found with no query at all."""
    height, width = restore(upcast_half(mask_logits[:0])).shape[-2:]
    return height, width


def query_chunks(
    mask_logits: Float[Tensor, 'q h w'], size: tuple[int, int], num_copies: int = 1
) -> Iterator[slice]:
    """Runs of queries whose logits, in ``num_copies`` copies, may exist at ``size`` together.

    Their number depends on the sizes and the device alone, so that results do not depend on how
    many queries there are. On the way a image has its padded size, which may be the larger one.
    """
    height, width = mask_logits.shape[-2:]
    pixels = max(size[0] * size[1], STRIDE * height * STRIDE * width)
    step = min(max(MAX_FLOATS // (num_copies * pixels), 1), MAX_QUERIES)
    if mask_logits.device.type == 'cpu':
        step = min(step, max(CACHED_FLOATS // pixels, 1))
    for start in range(0, len(mask_logits), step):
        yield slice(start, start + step)


def row_bands(class_logits: Float[Tensor, 'Q K1'], geometry: ImageGeometry) -> Iterator[range]:
    """Runs of rows of the original image of which a map of each query and class may exist.

    A few rows at a time, all queries of them stay in a CPU's caches.
    """
    num_maps, height = sum(class_logits.shape), geometry.original[0]
    width = max(geometry.original[1], geometry.padded[1])
    # Where the result is the smaller one, a row of it reads several.
    floats = num_maps * width * max(-(-geometry.resized[0] // height), 1)
    step = max(MAX_FLOATS // floats, 1)
    if class_logits.device.type == 'cpu':
        # A band that is resized once interpolates little beyond it: the nearer caches hold it.
        cached = CACHED_FLOATS // (4 if geometry.resized == geometry.original else 1)
        step = min(step, max(cached // floats, MIN_BAND))
    for start in range(0, height, step):
        yield range(start, min(start + step, height))


def mask_areas(masks: Bool[Tensor, 'q H W'], spare: Float[Tensor, 'q H W']) -> Int[Tensor, 'q']:
    """Pixels of each mask, counted in ``spare``, which is overwritten.

    Summing the masks themselves would copy them to eight bytes a pixel. A row's sum is exact in
    float32, a image's need not be.
    """
    return spare.copy_(masks).sum(2).long().sum(1)
