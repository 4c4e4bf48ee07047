"""The semantic result of one image: scores, or label maps without them.

Scores of 150 classes in an image of 4000 x 5000 pixels take 12 GB, so that the label maps are
formed a band of rows at a time. Everything is computed in float32 whatever the autocast: in a half
type the scores of hundreds of pixels tie.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmseg_m2f.core.chunks import rows_per_chunk
from mmseg_m2f.core.postprocess import FLOAT32_BYTES, query_chunks, resize_masks, restore_masks
from mmseg_m2f.core.structures import ImageGeometry, upcast_half


def semantic_scores(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
) -> Float[Tensor, 'K H W']:
    """Compute ``sum_q softmax(class_logits)[q, c] sigmoid(restore_masks(mask_logits))[q]``.

    No-object takes part in the softmax and is dropped after it. The scores lie in ``[0, Q]``; they
    are neither logits nor a distribution over the classes.

    Source: official ``maskformer_model.py``, ``semantic_inference``.
    """
    class_probs, mask_logits = _class_probs(class_logits), upcast_half(mask_logits)
    height, width = geometry.original
    scores = mask_logits.new_zeros(class_probs.shape[1], height * width)
    with torch.autocast(scores.device.type, enabled=False):
        for queries in query_chunks(mask_logits, geometry):
            mask_probs = restore_masks(mask_logits[queries], geometry).sigmoid()
            scores.addmm_(class_probs[queries].T, mask_probs.flatten(1))
    return scores.unflatten(1, geometry.original)


def semantic_labels(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
) -> Int[Tensor, 'H W']:
    """Return the class of the highest of ``semantic_scores`` for every pixel."""
    return _labels(class_logits, mask_logits, geometry, resize_scores=False)


def semantic_only_labels(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
) -> Int[Tensor, 'H W']:
    """Return the class of the highest score of a semantic-only model for every pixel.

    The scores are formed at the size of the network's input and resized then.
    """
    return _labels(class_logits, mask_logits, geometry, resize_scores=True)


@torch.no_grad()
def _labels(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
    *,
    resize_scores: bool,
) -> Int[Tensor, 'H W']:
    class_probs, mask_logits = _class_probs(class_logits), upcast_half(mask_logits)
    (height, width), (resized_height, resized_width) = geometry.original, geometry.resized
    # A band has two maps at once for each query and each class: what a step reads and what it
    # writes. Where the result is smaller than the input, one row of it reads several.
    pixels = max(-(-resized_height // height), 1) * max(width, geometry.padded[1])
    step = rows_per_chunk(FLOAT32_BYTES * 2 * sum(class_logits.shape) * pixels)
    every_row = range(mask_logits.shape[1])
    labels = class_logits.new_empty(geometry.original, dtype=torch.int64)
    for start in range(0, height, step):
        rows = range(start, min(start + step, height))
        lines = rows_read(resized_height, height, rows)  # of the resized image
        maps = resize_band(mask_logits, every_row, len(every_row), geometry.padded, lines)
        maps = maps[:, :, :resized_width]
        if resize_scores:
            maps = _scores(class_probs, maps)
        maps = resize_band(maps, lines, resized_height, geometry.original, rows)
        if not resize_scores:
            maps = _scores(class_probs, maps)
        labels[start : rows.stop] = maps.argmax(0)
    return labels


def _class_probs(class_logits: Float[Tensor, 'Q K1']) -> Float[Tensor, 'Q K']:
    """Return class probabilities without no-object."""
    return upcast_half(class_logits).softmax(-1)[:, :-1]


def _scores(
    class_probs: Float[Tensor, 'Q K'], masks: Float[Tensor, 'Q rows W']
) -> Float[Tensor, 'K rows W']:
    with torch.autocast(masks.device.type, enabled=False):
        return torch.einsum('qk,qhw->khw', class_probs, masks.sigmoid())


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
