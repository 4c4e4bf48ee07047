"""The instance result of one image: scored masks that may overlap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmseg_m2f.core.config import PostprocessConfig
from mmseg_m2f.core.postprocess import mask_areas, query_chunks, restore_masks
from mmseg_m2f.core.structures import ImageGeometry, upcast_half

# Masks (n, H, W) bool -> n codes of any kind, such as run lengths.
MaskEncoder = Callable[[Tensor], list[Any]]

# Official: an empty mask scores 0.
AREA_EPS = 1e-6


class Instances(NamedTuple):
    """N instances by falling score.

    ``labels (N,)`` int64, ``scores (N,)`` in [0, 1], ``masks (N, H, W)`` bool, and ``boxes (N, 4)``
    float ``x1 y1 x2 y2`` in pixels, the right and bottom edges exclusive; zeros for an empty mask.
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
    geometry: ImageGeometry,
    is_thing: Bool[Tensor, 'K'],
    config: PostprocessConfig,
    encode: MaskEncoder | None = None,
) -> Instances:
    """Select the best pairs of query and class; one query may appear with several classes.

    The score is the class probability times the mean mask probability inside the mask
    (``logit > 0``). ``max_per_image`` counts pairs of all classes, and those of stuff are dropped
    after it. ``score_thr`` drops lower scores. Equal scores keep the order of the class
    probabilities, then of the queries, then of the classes.

    With ``encode`` the masks of a few instances exist at a time; ``non_overlap``, which needs all,
    is refused with it by ``PostprocessConfig``.

    Source: official ``maskformer_model.py``, ``instance_inference``; boxes, ``score_thr`` and
    ``non_overlap`` are ours.
    """
    mask_logits = upcast_half(mask_logits)
    class_scores, query_idx, labels = _best_pairs(class_logits, is_thing, config)
    # A query is restored once for all its classes. Waits for the device: how many queries.
    queries, row = query_idx.unique(return_inverse=True)
    scores = class_scores * _mean_probability_inside(mask_logits[queries], geometry)[row]
    scores, order = scores.sort(descending=True, stable=True)
    number = int((scores >= config.score_thr).sum())  # waits for the device: the result's size
    scores, order = scores[:number], order[:number]
    labels, selected = labels[order], mask_logits[query_idx[order]]
    if encode is not None:
        return Instances(labels, scores, *_encoded(selected, geometry, encode))
    masks = mask_logits.new_empty(number, *geometry.original, dtype=torch.bool)
    for rows in query_chunks(selected, geometry):
        masks[rows] = restore_masks(selected[rows], geometry) > 0
    if not config.non_overlap:
        return Instances(labels, scores, masks, _boxes(masks))
    is_taken = masks.new_zeros(geometry.original)
    for mask in masks:
        mask &= ~is_taken
        is_taken |= mask
    boxes = _boxes(masks)
    kept = boxes[:, 2].nonzero()[:, 0]  # not empty; waits for the device: the result's size again
    return Instances(labels[kept], scores[kept], masks[kept], boxes[kept])


def _best_pairs(
    class_logits: Float[Tensor, 'Q K1'], is_thing: Bool[Tensor, 'K'], config: PostprocessConfig
) -> tuple[Float[Tensor, 'n'], Int[Tensor, 'n'], Int[Tensor, 'n']]:
    """Return class probability, query and label of the candidates, best first."""
    class_probs = upcast_half(class_logits).softmax(-1)[:, :-1].flatten()
    # A stable sort and not topk, which leaves the order of equals open.
    probs, pair = class_probs.sort(descending=True, stable=True)
    probs, pair = probs[: config.max_per_image], pair[: config.max_per_image]
    labels = pair % len(is_thing)
    # The mean mask probability is at most 1, so that a score never exceeds the class probability.
    kept = (is_thing[labels] & (probs >= config.score_thr)).nonzero()[:, 0]  # waits for the device
    return probs[kept], pair[kept] // len(is_thing), labels[kept]


def _mean_probability_inside(
    mask_logits: Float[Tensor, 'q h w'], geometry: ImageGeometry
) -> Float[Tensor, 'q']:
    """Average the mask probability over the pixels of each mask."""
    means = mask_logits.new_empty(len(mask_logits))
    for rows in query_chunks(mask_logits, geometry):
        logits = restore_masks(mask_logits[rows], geometry)
        is_inside = logits > 0
        total = logits.sigmoid().mul_(is_inside).sum((1, 2))
        means[rows] = total / (mask_areas(is_inside) + AREA_EPS)
    return means


def _encoded(
    mask_logits: Float[Tensor, 'N h w'], geometry: ImageGeometry, encode: MaskEncoder
) -> tuple[list[Any], Float[Tensor, 'N 4']]:
    """Return the codes of the masks, and their boxes."""
    codes: list[Any] = []
    boxes = torch.empty(len(mask_logits), 4, device=mask_logits.device)
    for rows in query_chunks(mask_logits, geometry):
        masks = restore_masks(mask_logits[rows], geometry) > 0
        boxes[rows] = _boxes(masks)
        codes += encode(masks)
    return codes, boxes


def _boxes(masks: Bool[Tensor, 'N H W']) -> Float[Tensor, 'N 4']:
    height, width = masks.shape[1:]
    # Bytes, because argmax does not take booleans.
    in_column, in_row = masks.any(1).byte(), masks.any(2).byte()
    sides = [
        in_column.argmax(1),
        in_row.argmax(1),
        width - in_column.flip(1).argmax(1),
        height - in_row.flip(1).argmax(1),
    ]
    return torch.stack(sides, 1).float() * in_row.amax(1, keepdim=True)
