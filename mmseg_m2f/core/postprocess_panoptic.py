"""The panoptic result of one image: every pixel in at most one segment."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmseg_m2f.core.config import PostprocessConfig
from mmseg_m2f.core.postprocess import mask_areas, query_chunks, restore_masks
from mmseg_m2f.core.structures import ImageGeometry, upcast_half


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


@torch.no_grad()
def panoptic(
    class_logits: Float[Tensor, 'Q K1'],
    mask_logits: Float[Tensor, 'Q h w'],
    geometry: ImageGeometry,
    is_thing: Bool[Tensor, 'K'],
    config: PostprocessConfig,
    *,
    within_masks: bool = True,
) -> Panoptic:
    """Let queries surer than ``object_mask_thr`` compete for each pixel by class times mask score.

    A query that wins less than ``overlap_thr`` of its mask's area is dropped, and its pixels are
    void. The pixels it wins outside its mask count for that, too, but they are void unless
    ``within_masks`` is False. Stuff of one class is one segment. Ties go to the earlier query or
    class.

    Source: official ``maskformer_model.py``, ``panoptic_inference``; ``within_masks=False`` is
    mmdet's ``MaskFormerFusionHead`` without ``filter_low_score``.
    """
    scores, labels = upcast_half(class_logits).softmax(-1).max(-1)
    is_sure = (labels < len(is_thing)) & (scores > config.object_mask_thr)
    kept = is_sure.nonzero()[:, 0]  # waits for the device: how many queries to restore
    scores, labels = scores[kept], labels[kept]
    owner, is_mask, areas = _compete(upcast_half(mask_logits[kept]), scores, geometry)
    # How many pixels each query leads outside and inside its mask.
    counts = (2 * owner + is_mask).flatten().bincount(minlength=2 * (len(kept) + 1))
    outside, inside = counts.view(-1, 2)[1:].unbind(1)
    won = outside + inside
    shown = inside if within_masks else won
    is_thing = is_thing[labels]
    # One copy to the host, where the segments are numbered.
    queries = torch.stack([labels, is_thing, areas, won, shown], dim=1).tolist()
    ids, first_queries = _number_segments(queries, config.overlap_thr)
    id_of_owner = torch.tensor([0, *ids], dtype=torch.int32, device=kept.device)
    segment_map = id_of_owner[owner]
    if within_masks:
        segment_map *= is_mask
    first = torch.tensor(first_queries, dtype=torch.int64, device=kept.device)
    return Panoptic(segment_map, labels[first], is_thing[first], scores[first])


def _compete(
    mask_logits: Float[Tensor, 'q h w'], scores: Float[Tensor, 'q'], geometry: ImageGeometry
) -> tuple[Int[Tensor, 'H W'], Bool[Tensor, 'H W'], Int[Tensor, 'q']]:
    """Find the query that leads each pixel: that of the greatest class times mask probability.

    Returns the leading query, counted from 1; whether the pixel lies in its mask (probability at
    least 1/2); and the areas of the queries' whole masks.
    """
    best = scores.new_full(geometry.original, -1)  # below any product: the first query leads
    owner = torch.zeros_like(best, dtype=torch.int32)
    is_mask = torch.zeros_like(best, dtype=torch.bool)
    areas = torch.zeros_like(scores, dtype=torch.int64)
    for queries in query_chunks(mask_logits, geometry):
        probs = restore_masks(mask_logits[queries], geometry).sigmoid()
        is_inside = probs >= 0.5
        areas[queries] = mask_areas(is_inside)
        product, index = probs.mul_(scores[queries, None, None]).max(0)
        # Each takes up to 160 MB for an image of 4000 x 5000: it goes before the next one comes.
        del probs
        leads = product > best  # a tie leaves the pixel to the earlier query
        best = torch.where(leads, product, best)
        del product
        is_mask = torch.where(leads, is_inside.gather(0, index[None])[0], is_mask)
        del is_inside
        owner = torch.where(leads, index.add_(queries.start + 1).int(), owner)
        del index, leads
    return owner, is_mask, areas


def _number_segments(
    queries: Sequence[Sequence[int]], overlap_thr: float
) -> tuple[list[int], list[int]]:
    """Number the segments from 1 in the order of the queries.

    ``queries`` holds ``(label, is_thing, area, won, shown)`` of each: the pixels of its mask, those
    it leads, and those of them that the segment would show. Returns the id of each query (0: none)
    and the first query of each segment.
    """
    ids: list[int] = []
    first_queries: list[int] = []
    id_of_stuff: dict[int, int] = {}
    for query, (label, is_thing, area, won, shown) in enumerate(queries):
        if area == 0 or shown == 0 or won / area < overlap_thr:
            ids.append(0)
        elif label in id_of_stuff:
            ids.append(id_of_stuff[label])
        else:
            first_queries.append(query)
            ids.append(len(first_queries))
            if not is_thing:
                id_of_stuff[label] = ids[-1]
    return ids, first_queries
