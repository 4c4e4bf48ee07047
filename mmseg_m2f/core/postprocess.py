"""Resizing to full size, which the semantic, instance and panoptic results share.

Post-processing treats one image and its last prediction. The order of operations is the model's:

* a semantic-only model resizes mask logits to the network's input, forms the scores there, and
  brings the scores to the original size (``to_original``);
* any other model brings mask logits to the original size (``restore_masks``), then forms whatever
  is asked for.

Results at full size are formed for a few queries at a time (``query_chunks``).
"""

from collections.abc import Iterator

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmseg_m2f.core.chunks import rows_per_chunk
from mmseg_m2f.core.layers import resize_bilinear
from mmseg_m2f.core.structures import ImageGeometry

FLOAT32_BYTES = 4


def resize_masks(
    mask_logits: Float[Tensor, 'q h w'], size: tuple[int, int]
) -> Float[Tensor, 'q H W']:
    """Resize bilinearly to ``size``, ``align_corners=False``."""
    return resize_bilinear(mask_logits[:, None], size)[:, 0]


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


def query_chunks(mask_logits: Float[Tensor, 'q h w'], geometry: ImageGeometry) -> Iterator[slice]:
    """Split the queries so that a chunk's logits at full size keep the memory budget.

    The chunks follow from the sizes alone, so that no result depends on the other queries.
    """
    (height, width), (padded_height, padded_width) = geometry.original, geometry.padded
    pixels = max(height * width, padded_height * padded_width)
    step = rows_per_chunk(FLOAT32_BYTES * pixels)
    for start in range(0, len(mask_logits), step):
        yield slice(start, start + step)


def mask_areas(masks: Bool[Tensor, 'q H W']) -> Int[Tensor, 'q']:
    """Count the pixels of each mask.

    The sum of a row is exact in float32, that of an image need not be; PyTorch sums booleans as
    int64, which takes seven times as long.
    """
    return masks.float().sum(2).long().sum(1)
