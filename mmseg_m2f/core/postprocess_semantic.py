"""The semantic result of one image: scores, or the label maps that need none.

``semantic_scores`` is the rule as it is written. The others give the same a few rows of pixels at a
time, and run in the heads. None is touched by an autocast.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmseg_m2f.core.postprocess import (
    MaskRestorer,
    query_chunks,
    read_rows,
    restore_rows,
    restored_size,
    row_bands,
    some_rows,
)
from mmseg_m2f.core.structures import ImageGeometry, upcast_half


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
    class_probs, mask_logits = _exact(class_logits, mask_logits)
    size = restored_size(mask_logits, restore)
    scores = mask_logits.new_zeros(class_probs.shape[1], size[0] * size[1])
    for rows in query_chunks(mask_logits, size):
        scores.addmm_(class_probs[rows].T, restore(mask_logits[rows]).sigmoid_().flatten(1))
    return scores.unflatten(1, size)


@torch.no_grad()
def input_scores(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    size: tuple[int, int],
) -> Float[Tensor, 'K H W']:
    """``semantic_scores`` with ``resize_masks`` to ``size``, up to rounding and in less time.

    ``size`` is the height and width of the network's input in pixels. Without gradient.
    """
    class_probs, mask_logits = _exact(class_logits, mask_logits)
    geometry = ImageGeometry(size, size, size)
    scores = mask_logits.new_empty(class_probs.shape[1], *size)
    for rows in row_bands(class_logits, geometry):
        probs = restore_rows(mask_logits, geometry, rows).sigmoid_()
        with _without_autocast(probs):
            band = class_probs.T @ probs.flatten(1)
        scores[:, rows.start : rows.stop] = band.view(-1, len(rows), size[1])
    return scores


@torch.no_grad()
def semantic_labels(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
) -> Int[Tensor, 'H W']:
    """The class of the highest of ``semantic_scores`` with ``restore_masks``, for every pixel.

    A few rows of pixels at a time: the scores of a large image never exist together.
    """
    class_probs, mask_logits = _exact(class_logits, mask_logits)

    def labels(rows: range) -> Int[Tensor, 'rows W']:
        probs = restore_rows(mask_logits, geometry, rows).sigmoid_()
        with _without_autocast(probs):
            # Pixel by pixel: the best of neighbours in memory is found three times as fast.
            scores = probs.flatten(1).T @ class_probs
            return scores.argmax(1).view(len(rows), -1)

    return _by_bands(labels, class_logits, geometry)


@torch.no_grad()
def semantic_only_labels(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
) -> Int[Tensor, 'H W']:
    """The class of the highest score of a semantic-only model, for every pixel of the original.

    That is ``semantic_scores`` with ``resize_masks`` to the padded size, then ``restore_scores``.
    """
    if geometry.resized == geometry.original:
        return semantic_labels(class_logits, mask_logits, geometry)  # the scores are not resized
    class_probs, mask_logits = _exact(class_logits, mask_logits)
    height, width = geometry.resized
    every_line = range(mask_logits.shape[1])

    def labels(rows: range) -> Int[Tensor, 'rows W']:
        read = read_rows(geometry, rows)
        masks = some_rows(mask_logits, every_line, every_line, geometry.padded, read)[:, :, :width]
        with _without_autocast(masks):
            scores = torch.einsum('qc,qhw->chw', class_probs, masks.sigmoid_())
        return some_rows(scores, read, range(height), geometry.original, rows).argmax(0)

    return _by_bands(labels, class_logits, geometry)


def _exact(class_logits: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Class probabilities without no-object and mask logits, in float32 at least."""
    return upcast_half(class_logits).softmax(-1)[:, :-1], upcast_half(mask_logits)


def _without_autocast(like: Tensor) -> torch.autocast:
    """An autocast would bring the products back to a half type, whose scores tie by hundreds."""
    return torch.autocast(like.device.type, enabled=False)


def _by_bands(
    labels: Callable[[range], Tensor], class_logits: Float[Tensor, 'Q K1'], geometry: ImageGeometry
) -> Int[Tensor, 'H W']:
    whole = class_logits.new_empty(geometry.original, dtype=torch.int64)
    for rows in row_bands(class_logits, geometry):
        whole[rows.start : rows.stop] = labels(rows)
    return whole
