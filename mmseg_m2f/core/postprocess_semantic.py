"""The semantic result of one image: scores, or label maps without them.

Scores of 150 classes in an image of 4000 x 5000 pixels take 12 GB, so that the label maps are
formed band by band. Everything is computed in float32 whatever the autocast: in a half type the
scores of hundreds of pixels tie.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmseg_m2f.core.postprocess import (
    input_band,
    original_band,
    query_chunks,
    restore_masks,
    row_bands,
    rows_read,
)
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


@torch.no_grad()
def semantic_labels(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
) -> Int[Tensor, 'H W']:
    """Return the class of the highest of ``semantic_scores`` for every pixel."""
    class_probs, mask_logits = _class_probs(class_logits), upcast_half(mask_logits)
    labels = class_logits.new_empty(geometry.original, dtype=torch.int64)
    for rows in row_bands(class_logits, geometry):
        lines = rows_read(geometry.resized[0], geometry.original[0], rows)
        masks = original_band(input_band(mask_logits, geometry, lines), lines, geometry, rows)
        labels[rows.start : rows.stop] = _scores(class_probs, masks).argmax(0)
    return labels


@torch.no_grad()
def semantic_only_labels(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
) -> Int[Tensor, 'H W']:
    """Return the class of the highest score of a semantic-only model for every pixel.

    The scores are formed at the size of the network's input and resized then.
    """
    class_probs, mask_logits = _class_probs(class_logits), upcast_half(mask_logits)
    labels = class_logits.new_empty(geometry.original, dtype=torch.int64)
    for rows in row_bands(class_logits, geometry):
        lines = rows_read(geometry.resized[0], geometry.original[0], rows)
        scores = _scores(class_probs, input_band(mask_logits, geometry, lines))
        scores = original_band(scores, lines, geometry, rows)
        labels[rows.start : rows.stop] = scores.argmax(0)
    return labels


def _class_probs(class_logits: Float[Tensor, 'Q K1']) -> Float[Tensor, 'Q K']:
    """Return class probabilities without no-object."""
    return upcast_half(class_logits).softmax(-1)[:, :-1]


def _scores(
    class_probs: Float[Tensor, 'Q K'], masks: Float[Tensor, 'Q rows W']
) -> Float[Tensor, 'K rows W']:
    with torch.autocast(masks.device.type, enabled=False):
        return torch.einsum('qk,qhw->khw', class_probs, masks.sigmoid())
