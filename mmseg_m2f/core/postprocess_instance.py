"""The instance result of one image: scored masks that may overlap."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmseg_m2f.core.config import PostprocessConfig
from mmseg_m2f.core.postprocess import (
    MAX_FLOATS,
    MaskRestorer,
    mask_areas,
    query_chunks,
    restored_size,
)
from mmseg_m2f.core.structures import upcast_half

# Masks ``(n, H, W)`` bool to n codes of any kind, such as run lengths.
MaskEncoder = Callable[[Tensor], list[Any]]

# Official: an empty mask scores 0.
AREA_EPS = 1e-6


class Instances(NamedTuple):
    """N instances by falling score.

    ``labels (N,)`` int64, ``scores (N,)`` in [0, 1], ``masks (N, H, W)`` bool, and ``boxes (N, 4)``
    float ``x1 y1 x2 y2`` in pixels, the right and bottom edges exclusive; zeros for an empty mask.
    The masks may be the first part of a buffer of up to twice their size: clone what is kept long.
    With an encoder ``masks`` is the list of their codes.
    """

    labels: Tensor
    scores: Tensor
    masks: Tensor | list[Any]
    boxes: Tensor


@torch.no_grad()
def instances(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    restore: MaskRestorer,
    is_thing: Bool[Tensor, 'K'],
    config: PostprocessConfig,
    encode: MaskEncoder | None = None,
) -> Instances:
    """The best pairs of query and class; one query may appear with several classes.

    Class probability times the mean mask probability inside the mask (``logit > 0``) is the score.
    ``max_per_image`` counts pairs of all classes, and those of stuff are dropped after it.
    ``score_thr`` drops lower scores. Equal scores keep the order of the class probabilities, then
    of the queries, then of the classes.

    With ``encode`` the masks of a few queries exist at a time; masks so kept cannot be made free of
    overlap (``non_overlap``), for which all are needed.

    Source: official ``maskformer_model.py``, ``instance_inference``; boxes, ``score_thr`` and
    ``non_overlap`` are ours.
    """
    class_scores, query_idx, labels = _best_pairs(class_logits, is_thing, config)
    # Waits for the device: how many queries to restore. A query counts once for all its classes.
    queries, row = query_idx.unique(return_inverse=True)
    if encode is not None:
        assert not config.non_overlap, 'refused by PostprocessConfig'
        codes, boxes, quality = _codes_boxes_and_quality(mask_logits[queries], restore, encode)
        scores, order = _ranked(class_scores * quality[row], config)
        labels, row = labels[order], row[order]
        return Instances(labels, scores, [codes[i] for i in row.tolist()], boxes[row])
    masks, quality = _masks_and_quality(mask_logits[queries], restore, len(labels))
    scores, order = _ranked(class_scores * quality[row], config)
    labels, row = labels[order], row[order]
    masks = _take(masks, row)
    if config.non_overlap and len(scores) > 0:
        _remove_overlap(masks)
        # Waits for the device: the result's size again.
        kept = masks.view(torch.uint8).amax((1, 2)).nonzero()[:, 0]
        scores, labels, masks = scores[kept], labels[kept], _take(masks, kept)
    return Instances(labels, scores, masks, _boxes(masks))


def _ranked(
    scores: Float[Tensor, 'n'], config: PostprocessConfig
) -> tuple[Float[Tensor, 'm'], Int[Tensor, 'm']]:
    """The scores that reach the threshold, best first, and where they were."""
    scores, order = scores.sort(descending=True, stable=True)
    number = int((scores >= config.score_thr).sum())  # waits for the device: the result's size
    return scores[:number], order[:number]


def _best_pairs(
    class_logits: Float[Tensor, 'Q K1'], is_thing: Bool[Tensor, 'K'], config: PostprocessConfig
) -> tuple[Float[Tensor, 'n'], Int[Tensor, 'n'], Int[Tensor, 'n']]:
    """Class probability, query and label of the pairs that may become instances, best first."""
    class_probs = upcast_half(class_logits).softmax(-1)[:, :-1].flatten()
    # A stable sort and not topk, which leaves the order of equals open.
    probs, pair = class_probs.sort(descending=True, stable=True)
    probs, pair = probs[: config.max_per_image], pair[: config.max_per_image]
    labels = pair % len(is_thing)
    # The mean mask probability is at most 1, so that a score never exceeds the class probability.
    kept = (is_thing[labels] & (probs >= config.score_thr)).nonzero()[:, 0]  # waits for the device
    return probs[kept], pair[kept] // len(is_thing), labels[kept]


def _masks_and_quality(
    mask_logits: Float[Tensor, 'q h w'], restore: MaskRestorer, num_rows: int
) -> tuple[Bool[Tensor, 'rows H W'], Float[Tensor, 'q']]:
    """The masks, in the first of ``num_rows`` rows, and their mean probabilities inside."""
    mask_logits = upcast_half(mask_logits)
    size = restored_size(mask_logits, restore)
    masks = torch.empty(num_rows, *size, dtype=torch.bool, device=mask_logits.device)
    quality = mask_logits.new_empty(len(mask_logits))
    for rows in query_chunks(mask_logits, size):
        quality[rows] = _binarize(restore(mask_logits[rows]), masks[: len(mask_logits)][rows])
    return masks, quality


def _codes_boxes_and_quality(
    mask_logits: Float[Tensor, 'q h w'], restore: MaskRestorer, encode: MaskEncoder
) -> tuple[list[Any], Float[Tensor, 'q 4'], Float[Tensor, 'q']]:
    """The encoded masks, their boxes, and their mean probabilities inside."""
    mask_logits = upcast_half(mask_logits)
    size = restored_size(mask_logits, restore)
    codes: list[Any] = []
    boxes = torch.empty(len(mask_logits), 4, device=mask_logits.device)
    quality = mask_logits.new_empty(len(mask_logits))
    for rows in query_chunks(mask_logits, size):
        masks = torch.empty(len(quality[rows]), *size, dtype=torch.bool, device=quality.device)
        quality[rows] = _binarize(restore(mask_logits[rows]), masks)
        boxes[rows] = _boxes(masks)
        codes += encode(masks)
    return codes, boxes, quality


def _binarize(logits: Float[Tensor, 'q H W'], masks: Bool[Tensor, 'q H W']) -> Float[Tensor, 'q']:
    """Fill ``masks``; return the mean probability inside each. Overwrites the logits."""
    masks.copy_(logits > 0)
    # What lies outside becomes -inf, whose sigmoid is 0: in place, without the masks as floats.
    inside = torch.threshold_(logits, 0, -math.inf).sigmoid_().sum((1, 2))
    return inside / (mask_areas(masks, spare=logits) + AREA_EPS)


def _bands(masks: Bool[Tensor, 'N H W']) -> Iterator[Bool[Tensor, 'N band W']]:
    """Views of a few pixel rows of all masks: what is done to them needs little room."""
    pixels = max(len(masks) * masks.shape[2], 1)
    yield from masks.split(max(MAX_FLOATS // pixels, 1), dim=1)


def _take(masks: Bool[Tensor, 'rows H W'], row: Int[Tensor, 'N']) -> Bool[Tensor, 'N H W']:
    """``masks[row]`` for at most as many rows, in the place of ``masks``: no second copy.

    Unless fewer than half of the rows remain, which a copy frees from the rest.
    """
    if 2 * len(row) < len(masks):
        return masks[row]
    for band in _bands(masks):
        band[: len(row)] = band[row]
    return masks[: len(row)]


def _remove_overlap(masks: Bool[Tensor, 'N H W']) -> None:
    """Leave each pixel to the first mask that holds it."""
    index = torch.arange(len(masks), device=masks.device)[:, None, None]
    for band in _bands(masks):
        band &= band.view(torch.uint8).argmax(0) == index


def _boxes(masks: Bool[Tensor, 'N H W']) -> Float[Tensor, 'N 4']:
    height, width = masks.shape[1:]
    # The maximum of bytes is the fast way to say any.
    in_column, in_row = masks.view(torch.uint8).amax(1), masks.view(torch.uint8).amax(2)
    sides = [
        in_column.argmax(1),
        in_row.argmax(1),
        width - in_column.flip(1).argmax(1),
        height - in_row.flip(1).argmax(1),
    ]
    return torch.stack(sides, 1).float() * in_row.amax(1, keepdim=True)
