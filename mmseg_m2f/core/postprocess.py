"""Resizing to full size, which the semantic, instance and panoptic results share.

Post-processing treats one image and its last prediction. The order of operations is the model's:

* a semantic-only model resizes mask logits to the network's input, forms the scores there, and
  brings the scores to the original size (``to_original``);
* any other model brings mask logits to the original size (``restore_masks``), then forms whatever
  is asked for.

Results at full size are formed for a few queries (``query_chunks``) or for a few rows of pixels
(``row_bands``) at a time.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.chunks import rows_per_chunk
from mmseg_m2f.core.structures import ImageGeometry

FLOAT32_BYTES = 4


def resize_masks(
    mask_logits: Float[Tensor, 'q h w'], size: tuple[int, int]
) -> Float[Tensor, 'q H W']:
    """Resize bilinearly to ``size``, ``align_corners=False``."""
    resized = F.interpolate(mask_logits[:, None], size=size, mode='bilinear', align_corners=False)
    return resized[:, 0]


def restore_masks(
    mask_logits: Float[Tensor, 'q h w'], geometry: ImageGeometry
) -> Float[Tensor, 'q H W']:
    """Resize to the network's input, crop to the image, resize to the original size.

    One bilinear step instead of two would be cheaper and gives other numbers.

    Source: official ``maskformer_model.py``, detectron2's ``sem_seg_postprocess``.
    """
    return to_original(resize_masks(mask_logits, geometry.padded), geometry)


def to_original(maps: Float[Tensor, 'n Hp Wp'], geometry: ImageGeometry) -> Float[Tensor, 'n H W']:
    """Crop maps of the network's input to the image and resize them to the original size."""
    height, width = geometry.resized
    maps = maps[:, :height, :width]
    return maps if geometry.resized == geometry.original else resize_masks(maps, geometry.original)


def resize_band(
    held: Float[Tensor, 'n lines w'], lines: range, height: int, size: tuple[int, int], rows: range
) -> Float[Tensor, 'n rows W']:
    """Bilinearly compute output ``rows`` from the input rows ``held``.

    Equals ``resize_masks(maps, size)[:, rows]`` up to rounding: the height is interpolated before
    the width, not with it.

    Args:
        held: ``maps[:, lines]``, where the maps have ``height`` rows.
        lines: contains ``rows_read(height, size[0], rows)``.
        height: of the whole input maps.
        size: of the whole output maps.
        rows: of the output maps.
    """
    if (height, held.shape[2]) == size:
        return held[:, rows.start - lines.start : rows.stop - lines.start]
    center = torch.arange(rows.start, rows.stop, device=held.device, dtype=held.dtype) + 0.5
    position = (center * (height / size[0]) - 0.5).clamp(min=0)
    above = position.long()
    below = (above + 1).clamp(max=height - 1)
    share_below = (position - above)[:, None]
    band = torch.lerp(held[:, above - lines.start], held[:, below - lines.start], share_below)
    return resize_masks(band, (len(rows), size[1]))  # the height is reached: in width alone


def rows_read(height: int, new_height: int, rows: range) -> range:
    """Return the input rows that ``resize_band`` reads, and one more on each side for rounding."""
    scale = height / new_height
    first = max(int((rows.start + 0.5) * scale - 0.5) - 1, 0)
    last = min(int((rows.stop - 0.5) * scale - 0.5) + 2, height - 1)
    return range(first, last + 1)


def input_band(
    mask_logits: Float[Tensor, 'q h w'], geometry: ImageGeometry, rows: range
) -> Float[Tensor, 'q rows Wr']:
    """Compute the pixel rows ``rows`` of the resized image, after the first resizing alone."""
    height = mask_logits.shape[1]
    band = resize_band(mask_logits, range(height), height, geometry.padded, rows)
    return band[:, :, : geometry.resized[1]]


def original_band(
    maps: Float[Tensor, 'n lines Wr'], lines: range, geometry: ImageGeometry, rows: range
) -> Float[Tensor, 'n rows W']:
    """Compute the pixel rows ``rows`` of the original image from ``lines`` of the resized one."""
    return resize_band(maps, lines, geometry.resized[0], geometry.original, rows)


def query_chunks(mask_logits: Float[Tensor, 'q h w'], geometry: ImageGeometry) -> Iterator[slice]:
    """Split the queries so that a chunk's logits at full size keep the memory budget.

    The chunks follow from the sizes alone, so that no result depends on the other queries.
    """
    (height, width), (padded_height, padded_width) = geometry.original, geometry.padded
    pixels = max(height * width, padded_height * padded_width)
    step = rows_per_chunk(FLOAT32_BYTES * pixels)
    for start in range(0, len(mask_logits), step):
        yield slice(start, start + step)


def row_bands(class_logits: Float[Tensor, 'Q K1'], geometry: ImageGeometry) -> Iterator[range]:
    """Split the rows of the original image so that a band's maps keep the memory budget.

    A band has a map for each query and for each class.
    """
    height, width = geometry.original
    # Where the result is smaller than the input, one row of it reads several.
    rows_per_row = max(-(-geometry.resized[0] // height), 1)
    pixels = rows_per_row * max(width, geometry.padded[1])
    step = rows_per_chunk(FLOAT32_BYTES * max(class_logits.shape) * pixels)
    for start in range(0, height, step):
        yield range(start, min(start + step, height))


def mask_areas(masks: Bool[Tensor, 'q H W']) -> Int[Tensor, 'q']:
    """Count the pixels of each mask.

    The sum of a row is exact in float32, that of an image need not be; PyTorch sums booleans as
    int64, which takes seven times as long.
    """
    return masks.float().sum(2).long().sum(1)
