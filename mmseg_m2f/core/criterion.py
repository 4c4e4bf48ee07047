"""The losses of every prediction on matched pairs: deep supervision (paper section 3.3)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch import distributed as dist

from mmseg_m2f.core.losses import (
    ClassificationLoss,
    MaskLoss,
    PointDiceLoss,
    PointMaskLoss,
    RowLoss,
)
from mmseg_m2f.core.points import PointSampler, sample_logits, sample_masks
from mmseg_m2f.core.structures import MaskPrediction, MaskTarget, Match, upcast_half


class LossTerms(NamedTuple):
    """The weighted scalar losses of one prediction."""

    cls: Tensor
    mask: Tensor
    dice: Tensor


# (targets, matches) of this process -> the number of masks they count as
CountMasks = Callable[[Sequence[MaskTarget], Sequence[Match]], int]


def count_targets(targets: Sequence[MaskTarget], matches: Sequence[Match]) -> int:
    """Count every target, also those beyond the number of queries and those with empty masks.

    Source: official ``modeling/criterion.py``.
    """
    return sum(len(target.labels) for target in targets)


def count_matched(targets: Sequence[MaskTarget], matches: Sequence[Match]) -> int:
    """Count the matched pairs of one prediction; an image without any counts as one.

    Source: mmdet ``samplers/mask_sampling_result.py``. All predictions match equally many.
    """
    return sum(max(match.query_idx.shape[-1], 1) for match in matches)


def global_num_masks(count_here: int, device: torch.device) -> Float[Tensor, '']:
    """Average the count over all processes, at least 1: the mask losses are divided by it.

    This is the only all-reduce of a step's losses.
    """
    count = torch.full((), float(count_here), device=device)  # a fill: no copy to wait for
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)


class MaskClassificationLoss(nn.Module):
    """Compute all loss terms of all predictions, in float32 whatever the autocast.

    Only the masks of matched queries are formed. A ``RowLoss`` (ours are) gets all predictions in
    one call, another mask loss one call per prediction. ``T`` counts the predictions in shapes.

    Args:
        class_loss: ``(class_logits (B, Q, K+1), target_classes (B, Q)) -> scalar``.
        mask_loss, dice_loss: ``(point_logits (M, P), point_targets (M, P), num_masks) -> scalar``.
        points: chooses points ``(M, P, 2)`` from mask logits ``(M, h, w)``; by default most of them
            where the logit is closest to 0.
        count_masks: counts the masks of this process. The mask losses are divided by the mean count
            of all processes.

    Source: official ``modeling/criterion.py``.
    """

    def __init__(
        self,
        class_loss: ClassificationLoss,
        mask_loss: MaskLoss | None = None,
        dice_loss: MaskLoss | None = None,
        points: PointSampler | None = None,
        count_masks: CountMasks = count_targets,
    ) -> None:
        super().__init__()
        self.class_loss = class_loss
        self.mask_loss = mask_loss or PointMaskLoss()
        self.dice_loss = dice_loss or PointDiceLoss()
        self.points = points or PointSampler()
        self.count_masks = count_masks

    def forward(
        self,
        predictions: Sequence[MaskPrediction],
        mask_features: Float[Tensor, 'B C h w'],
        targets: Sequence[MaskTarget],
        matches: Sequence[Match],
    ) -> list[LossTerms]:
        """Return the weighted losses of each prediction, in their order.

        Without any target (M = 0) the mask terms are 0, and the backward pass still gives every
        parameter a gradient, as distributed training needs.
        """
        with torch.autocast(mask_features.device.type, enabled=False):
            class_logits = upcast_half(torch.stack([p.class_logits for p in predictions]))
            mask_embed = upcast_half(torch.stack([p.mask_embed for p in predictions]))
            target_classes = _target_classes(class_logits, targets, matches)
            cls = [
                self.class_loss(logits, classes)
                for logits, classes in zip(class_logits, target_classes, strict=True)
            ]
            features = mask_features.to(mask_embed.dtype)
            images = zip(mask_embed.unbind(1), features, targets, matches, strict=True)
            at_points = [self._at_points(*image) for image in images]
            point_logits, point_targets = (
                torch.cat(parts, dim=1) for parts in zip(*at_points, strict=True)
            )
            num_masks = global_num_masks(self.count_masks(targets, matches), features.device)
            mask = _per_prediction(self.mask_loss, point_logits, point_targets, num_masks)
            dice = _per_prediction(self.dice_loss, point_logits, point_targets, num_masks)
        return [LossTerms(*terms) for terms in zip(cls, mask, dice, strict=True)]

    def _at_points(
        self,
        mask_embed: Float[Tensor, 'T Q C'],
        mask_features: Float[Tensor, 'C h w'],
        target: MaskTarget,
        match: Match,
    ) -> tuple[Float[Tensor, 'T M P'], Float[Tensor, 'T M P']]:
        """Sample the matched mask logits of one image and their targets at points."""
        index = match.query_idx[..., None].expand(-1, -1, mask_embed.shape[-1])
        matched = mask_embed.gather(1, index).flatten(0, 1)  # (T M, C)
        # Gradients pass through the logits. The points that were chosen for them carry none.
        point_logits, points = sample_logits(matched, mask_features, self.points)
        point_targets = sample_masks(target.masks, match.target_idx.flatten(), points)
        shape = match.query_idx.shape
        return point_logits.unflatten(0, shape), point_targets.unflatten(0, shape)


def _target_classes(
    class_logits: Float[Tensor, 'T B Q K1'],
    targets: Sequence[MaskTarget],
    matches: Sequence[Match],
) -> Int[Tensor, 'T B Q']:
    """Return the matched target's label for each query, no-object (K) for the others."""
    no_object = class_logits.shape[-1] - 1
    classes = torch.full(class_logits.shape[:-1], no_object, device=class_logits.device)
    for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
        classes[:, image].scatter_(1, match.query_idx, target.labels[match.target_idx])
    return classes


def _per_prediction(
    loss: MaskLoss,
    point_logits: Float[Tensor, 'T M P'],
    point_targets: Float[Tensor, 'T M P'],
    num_masks: Float[Tensor, ''],
) -> Sequence[Tensor]:
    if isinstance(loss, RowLoss):  # sums over M only: one loss per prediction, (T,)
        return loss(point_logits, point_targets, num_masks).unbind()
    return [
        loss(logits, target, num_masks)
        for logits, target in zip(point_logits, point_targets, strict=True)
    ]
