"""The panoptic result of one image: every pixel in at most one segment."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmseg_m2f.core.config import PostprocessConfig
from mmseg_m2f.core.postprocess import MaskRestorer, mask_areas, query_chunks, restored_size
from mmseg_m2f.core.structures import upcast_half


class Panoptic(NamedTuple):
    """N segments in the order of their queries.

    ``segment_map (H, W)`` int32, 0 for void and ``i + 1`` for segment i, whose class is
    ``labels[i]`` int64. ``is_thing (N,)`` bool; ``scores (N,)``, the class probability in (0, 1]
    of a segment's first query.
    """

    segment_map: Tensor
    labels: Tensor
    is_thing: Tensor
    scores: Tensor


class _Pixels(NamedTuple):
    """The leading query of each pixel: the one with the greatest class times mask probability.

    ``value (H, W)`` is that product; ``owner (H, W)`` int32 the query, counted from 1; ``is_mask
    (H, W)`` whether the pixel lies in the owner's mask (probability at least 1/2).
    """

    value: Tensor
    owner: Tensor
    is_mask: Tensor


@torch.no_grad()
def panoptic(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    restore: MaskRestorer,
    is_thing: Bool[Tensor, 'K'],
    config: PostprocessConfig,
    *,
    within_masks: bool = True,
) -> Panoptic:
    """Queries surer than ``object_mask_thr`` compete for each pixel by class times mask score.

    A query that wins less than ``overlap_thr`` of its mask's area is dropped, and its pixels are
    void; so are pixels outside their winner's mask. What it wins is counted outside its mask, too.
    Stuff of one class is one segment. Equals are decided for the earlier query or class. Unless
    ``within_masks``, a segment keeps what it wins outside its mask, too.

    Source: official ``maskformer_model.py``, ``panoptic_inference``; the other choice is that of
    mmdet's ``MaskFormerFusionHead`` without ``filter_low_score``.
    """
    scores, labels = upcast_half(class_logits).softmax(-1).max(-1)
    is_kept = (labels < len(is_thing)) & (scores > config.object_mask_thr)
    kept = is_kept.nonzero()[:, 0]  # waits for the device: how many queries to restore
    scores, labels = scores[kept], labels[kept]
    is_thing = is_thing[labels]
    pixels, areas = _compete(mask_logits[kept], scores, restore)
    won, painted = _won_and_painted(pixels, len(kept))
    if not within_masks:
        painted = won * (areas > 0)
    # In float64 the ratio of two areas compares with a threshold such as 0.8 as in Python.
    is_segment = (painted > 0) & (won.double() / areas >= config.overlap_thr)
    ids, is_first = _number(labels, is_thing, is_segment)
    table = torch.cat([ids.new_zeros(1), ids])
    segment_map = table.index_select(0, pixels.owner.flatten()).view_as(pixels.owner)
    if within_masks:
        segment_map.mul_(pixels.is_mask)
    first = is_first.nonzero()[:, 0]  # waits for the device: the result's size
    return Panoptic(segment_map, labels[first], is_thing[first], scores[first])


def _compete(
    mask_logits: Float[Tensor, 'q h w'], scores: Float[Tensor, 'q'], restore: MaskRestorer
) -> tuple[_Pixels, Int[Tensor, 'q']]:
    """The pixels' owners, and the area of each query's mask."""
    mask_logits = upcast_half(mask_logits)
    size = restored_size(mask_logits, restore)
    value = scores.new_full(size, -1)  # less than any product, so that the first query leads
    owner = torch.zeros_like(value, dtype=torch.int32)
    pixels = _Pixels(value, owner, torch.zeros_like(value, dtype=torch.bool))
    areas = torch.empty_like(scores, dtype=torch.int64)
    # Beside the logits each pixel keeps five numbers, which weigh where few queries are a chunk.
    for rows in query_chunks(mask_logits, size, num_copies=2):
        logits = restore(mask_logits[rows])
        areas[rows] = _challenge(pixels, logits, scores[rows], rows.start + 1)
        del logits  # before the next are made
    return pixels, areas


def _challenge(
    pixels: _Pixels, logits: Float[Tensor, 'q H W'], scores: Float[Tensor, 'q'], first: int
) -> Int[Tensor, 'q']:
    """Let queries ``first, first + 1, ...`` take the pixels they lead; return their masks' areas.

    Overwrites the logits.
    """
    probs = logits.sigmoid_()
    is_mask = probs >= 0.5
    value, index = probs.mul_(scores[:, None, None]).max(0)
    leads = value > pixels.value  # an equal product leaves the pixel to the earlier query
    is_mask_of_winner = is_mask.gather(0, index[None])[0]
    torch.where(leads, is_mask_of_winner, pixels.is_mask, out=pixels.is_mask)
    torch.where(leads, index.add_(first).int(), pixels.owner, out=pixels.owner)
    torch.maximum(value, pixels.value, out=pixels.value)
    return mask_areas(is_mask, spare=probs)


def _won_and_painted(
    pixels: _Pixels, num_queries: int
) -> tuple[Int[Tensor, 'q'], Int[Tensor, 'q']]:
    """Pixels won by each query, and those of them within its mask."""
    slot = (2 * pixels.owner + pixels.is_mask).flatten().long()
    one = slot.new_ones(1).expand_as(slot)
    # Not bincount, which waits for the device to see the greatest slot.
    counts = slot.new_zeros(2 * (num_queries + 1)).scatter_add_(0, slot, one).view(-1, 2)[1:]
    return counts.sum(1), counts[:, 1]


def _number(
    labels: Int[Tensor, 'q'], is_thing: Bool[Tensor, 'q'], is_segment: Bool[Tensor, 'q']
) -> tuple[Int[Tensor, 'q'], Bool[Tensor, 'q']]:
    """Segment id of each query (0: none), and whether it is the first with its id."""
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    together = itself | ((labels[:, None] == labels) & ~is_thing)
    is_first = is_segment & ~(together & is_segment).tril(-1).any(1)
    number = is_first.cumsum(0)
    ids = (number * (together & is_first)).sum(1) * is_segment
    return ids.int(), is_first
