"""The class, mask and Dice losses themselves (paper section 3.3)."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.core.chunks import map_chunks

# (point_logits (M, P), point_targets (M, P), num_masks) -> scalar
MaskLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
# (class_logits (B, Q, K+1), target_classes (B, Q)) -> scalar
ClassificationLoss = Callable[[Tensor, Tensor], Tensor]


class ClassLoss(nn.Module):
    """Softmax cross-entropy over all queries, averaged by the weights of their targets.

    Args:
        num_classes: K.
        weight: factor of this term in the sum of losses.
        class_weight: one weight per real class; default all 1.
        no_object_weight: weight of class index K, no-object.

    The mean is per process, as in the official code.
    """

    class_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        weight: float = 2.0,
        class_weight: Sequence[float] | None = None,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        weights = list(class_weight) if class_weight is not None else [1.0] * num_classes
        if len(weights) == num_classes:
            weights.append(no_object_weight)
        if len(weights) != num_classes + 1:
            raise ValueError(
                f'class_weight must have num_classes ({num_classes}) entries, or one more for '
                f'no-object, got {len(weights)}'
            )
        if min(weights) < 0 or weights[-1] == 0:
            # Without targets the mean would be 0 / 0.
            raise ValueError(
                f'class weights must not be negative and that of no-object not 0, got {weights}'
            )
        self.weight = weight
        self.register_buffer('class_weight', torch.tensor(weights), persistent=False)

    def forward(
        self, class_logits: Float[Tensor, 'B Q K1'], target_classes: Int[Tensor, 'B Q']
    ) -> Float[Tensor, '']:
        """Average over the ``B * Q`` queries, weighted by class."""
        class_weight = self.class_weight.to(class_logits.dtype)
        loss = F.cross_entropy(class_logits.flatten(0, 1), target_classes.flatten(), class_weight)
        return self.weight * loss


class RowLoss(nn.Module):
    """A mask loss that is a sum over independent masks, so that all predictions share one call.

    A subclass defines ``per_row``, which must treat each mask by itself.
    """

    def __init__(self, weight: float = 5.0) -> None:
        super().__init__()
        self.weight = weight

    def per_row(
        self, point_logits: Float[Tensor, '*M P'], point_targets: Float[Tensor, '*M P']
    ) -> Float[Tensor, '*M']:
        """Compute the unweighted loss of each mask."""
        raise NotImplementedError

    def forward(
        self,
        point_logits: Float[Tensor, '*M P'],
        point_targets: Float[Tensor, '*M P'],
        num_masks: Float[Tensor, ''],
    ) -> Float[Tensor, '...']:
        """Sum over the last axis of masks, divide by ``num_masks``, multiply by the weight."""
        num_points = point_logits.shape[-1]
        rows = point_logits.reshape(-1, num_points), point_targets.reshape(-1, num_points)
        bytes_per_row = point_logits.element_size() * num_points
        losses = map_chunks(self.per_row, *rows, bytes_per_row=bytes_per_row)
        return self.weight * losses.view(point_logits.shape[:-1]).sum(-1) / num_masks


class PointMaskLoss(RowLoss):
    """Binary cross-entropy, mean over the points of a mask."""

    def per_row(
        self, point_logits: Float[Tensor, '*M P'], point_targets: Float[Tensor, '*M P']
    ) -> Float[Tensor, '*M']:
        """Compute the loss of each mask, at least 0."""
        loss = F.binary_cross_entropy_with_logits(point_logits, point_targets, reduction='none')
        return loss.mean(-1)


class PointDiceLoss(RowLoss):
    """One minus the Dice coefficient over the points of a mask.

    The Dice coefficient is ``(2 s.t + 1) / (sum s + sum t + 1)`` with ``s`` the sigmoid.
    """

    def per_row(
        self, point_logits: Float[Tensor, '*M P'], point_targets: Float[Tensor, '*M P']
    ) -> Float[Tensor, '*M']:
        """Compute the loss of each mask, in [0, 1)."""
        probs = point_logits.sigmoid()
        overlap = 2 * (probs * point_targets).sum(-1)
        return 1 - (overlap + 1) / (probs.sum(-1) + point_targets.sum(-1) + 1)
