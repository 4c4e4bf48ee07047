"""MMDetection's match costs and losses behind the contracts of the core."""

from typing import Any

from mmengine.structures import InstanceData
from torch import Tensor, nn


def is_from_mmdet(part: object) -> bool:
    """True for an object whose class, or one it derives from, MMDetection defines."""
    return any(base.__module__.partition('.')[0] == 'mmdet' for base in type(part).__mro__)


class MMDetMatchCost:
    """An mmdet match cost: it sees class logits as ``scores`` and points as flattened ``masks``.

    Not ``row_wise``: what a foreign cost does with the rows is its own affair.
    """

    def __init__(self, cost: Any) -> None:
        self.cost = cost

    def __call__(
        self, class_logits: Tensor, point_logits: Tensor, labels: Tensor, point_targets: Tensor
    ) -> Tensor:
        """``(Q, K+1), (Q, P), (N,), (N, P) -> (Q, N)``."""
        predicted = InstanceData(scores=class_logits, masks=point_logits)
        target = InstanceData(labels=labels, masks=point_targets)
        return self.cost(predicted, target)


class MMDetMaskLoss(nn.Module):
    """An mmdet loss on points: Dice losses row by row, all others point by point.

    Point-wise losses are averaged over ``num_masks * P`` points, as PointMaskLoss is.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.is_row_loss = 'dice' in type(loss).__name__.lower()

    def forward(self, point_logits: Tensor, point_targets: Tensor, num_masks: Tensor) -> Tensor:
        """``(M, P), (M, P), () -> ()``; without rows 0, still connected to the logits."""
        if len(point_logits) == 0:
            return point_logits.sum()
        if self.is_row_loss:
            return self.loss(point_logits, point_targets, avg_factor=num_masks)
        # (points, 1) against (points, 1): FocalLoss takes targets of equal rank as they are, so
        # the soft values at mask borders survive.
        num_points = num_masks * point_logits.shape[1]
        flat = (point_logits.reshape(-1, 1), point_targets.reshape(-1, 1))
        return self.loss(*flat, avg_factor=num_points)


class MMDetClassLoss(nn.Module):
    """mmdet's softmax ``CrossEntropyLoss`` as classification loss, averaged by class weight.

    Args:
        loss: built from the user's configuration.
        num_classes: K.
        no_object_weight: appended to the loss's ``class_weight`` if that names K classes only.
    """

    def __init__(self, loss: Any, num_classes: int, no_object_weight: float) -> None:
        super().__init__()
        if getattr(loss, 'use_sigmoid', False):
            raise TypeError(
                f'{type(loss).__name__} with sigmoid cannot be the class loss: inference takes a '
                'softmax over the classes and no-object. Use it as the mask loss, or '
                "dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False) here."
            )
        weights = list(getattr(loss, 'class_weight', None) or [1.0] * num_classes)
        if len(weights) == num_classes:
            weights.append(no_object_weight)
        if len(weights) != num_classes + 1:
            raise ValueError(
                f'class_weight of the class loss must have {num_classes} or {num_classes + 1} '
                f'entries, got {len(weights)}'
            )
        loss.class_weight = weights
        self.loss = loss

    def forward(self, class_logits: Tensor, target_classes: Tensor) -> Tensor:
        """``(B, Q, K+1), (B, Q) -> ()``."""
        labels = target_classes.flatten()
        total = class_logits.new_tensor(self.loss.class_weight)[labels].sum()
        return self.loss(class_logits.flatten(0, 1), labels, avg_factor=total)
