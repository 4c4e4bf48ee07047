"""From mask logits to full size, and the semantic result, in the official order of operations.

All of post-processing treats one picture and the last prediction. Full size is reached through a
``MaskRestorer``, for a few queries at a time; which one is given fixes the order of operations:

* semantic-only model: ``resize_masks`` to the network input, ``semantic_scores``, then
  ``restore_scores`` (or the framework's own resizing) to the original size;
* any other model: ``restore_masks`` to the original size, then whatever is asked for.
"""

from collections.abc import Callable, Iterator

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.structures import ImageGeometry, at_least_float32

# Mask logits ``(q, h, w)`` to full size ``(q, H, W)``: a new tensor, which may be overwritten.
# It must treat each query alone, and take none (q = 0) as well.
MaskRestorer = Callable[[Tensor], Tensor]

# What exists at full size at a time, in queries and in floats (256 MiB).
MAX_QUERIES, MAX_FLOATS = 25, 2**26
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
    """To the network input, crop to the picture, to the original size: two bilinear steps.

    One step would be cheaper and is not the same.

    Source: official ``maskformer_model.py``, detectron2's ``sem_seg_postprocess``.
    """
    return _uncrop(resize_masks(mask_logits, geometry.padded), geometry)


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
    height, width = restore(at_least_float32(mask_logits[:0])).shape[-2:]
    return height, width


def query_chunks(mask_logits: Float[Tensor, 'q h w'], size: tuple[int, int]) -> Iterator[slice]:
    """Runs of queries whose logits may exist at ``size`` together.

    Their number depends on the sizes alone, so that results do not depend on how many queries
    there are. On the way a picture has its padded size, which may be the larger one.
    """
    height, width = mask_logits.shape[-2:]
    pixels = max(size[0] * size[1], STRIDE * height * STRIDE * width)
    step = min(max(MAX_FLOATS // pixels, 1), MAX_QUERIES)
    for start in range(0, len(mask_logits), step):
        yield slice(start, start + step)


def mask_areas(masks: Bool[Tensor, 'q H W'], spare: Float[Tensor, 'q H W']) -> Int[Tensor, 'q']:
    """Pixels of each mask, counted in ``spare``, which is overwritten.

    Summing the masks themselves would copy them to eight bytes a pixel. A row's sum is exact in
    float32, a picture's need not be.
    """
    return spare.copy_(masks).sum(2).long().sum(1)


def semantic_scores(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    restore: MaskRestorer,
) -> Float[Tensor, 'K H W']:
    """``sum_q softmax(class_logits)[q, c] sigmoid(restore(mask_logits)[q])``.

    No-object takes part in the softmax and is dropped after it. The scores lie in ``[0, Q]``; they
    are neither logits nor a distribution over the classes. Computed in float32 at least.

    Source: official ``maskformer_model.py``, ``semantic_inference``.
    """
    class_probs = at_least_float32(class_logits).softmax(-1)[:, :-1]
    mask_logits = at_least_float32(mask_logits)
    size = restored_size(mask_logits, restore)
    scores = mask_logits.new_zeros(class_probs.shape[1], size[0] * size[1])
    for rows in query_chunks(mask_logits, size):
        scores.addmm_(class_probs[rows].T, restore(mask_logits[rows]).sigmoid_().flatten(1))
    return scores.unflatten(1, size)
