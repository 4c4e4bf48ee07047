"""Let MMDetection's match costs and losses be called as those of the core."""

from typing import Any

from mmengine.structures import InstanceData
from torch import Tensor, nn

_MEAN_OF_ALL = {
    'use_mask': False,
    'reduction': 'mean',
    'ignore_index': None,
    'avg_non_ignore': False,
}
_OVERLAP = {'use_sigmoid': True, 'activate': True, 'reduction': 'mean'}
# The losses and costs of mmdet that compute what ours do, by our names: class and settings. Their
# weights, and the class weights, are free.
SAME_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    'cls': ('CrossEntropyLoss', {'use_sigmoid': False, **_MEAN_OF_ALL}),
    'mask': ('CrossEntropyLoss', {'use_sigmoid': True, 'class_weight': None, **_MEAN_OF_ALL}),
    'dice': ('DiceLoss', {'naive_dice': True, 'eps': 1.0, **_OVERLAP}),
}
SAME_COSTS: dict[str, tuple[str, dict[str, Any]]] = {
    'cls': ('ClassificationCost', {}),
    'mask': ('CrossEntropyLossCost', {'use_sigmoid': True}),
    'dice': ('DiceCost', {'pred_act': True, 'naive_dice': True, 'eps': 1.0}),
}


def is_from_mmdet(part: object) -> bool:
    """Return True if the class of ``part``, or one of its base classes, is MMDetection's."""
    return any(base.__module__.partition('.')[0] == 'mmdet' for base in type(part).__mro__)


class MMDetMatchCost:
    """Call an mmdet match cost; it may mix the rows, so it does not declare ``row_wise``."""

    def __init__(self, cost: Any) -> None:
        self.cost = cost

    def __call__(
        self, class_logits: Tensor, point_logits: Tensor, labels: Tensor, point_targets: Tensor
    ) -> Tensor:
        """Return the costs: ``(Q, K+1), (Q, P), (N,), (N, P) -> (Q, N)``."""
        predicted = InstanceData(scores=class_logits, masks=point_logits)
        return self.cost(predicted, InstanceData(labels=labels, masks=point_targets))


class MMDetMaskLoss(nn.Module):
    """Call an mmdet loss on points: a Dice loss row by row, any other loss point by point.

    Point-wise losses are averaged over ``num_masks * P`` points, as in `core.PointMaskLoss`.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, point_logits: Tensor, point_targets: Tensor, num_masks: Tensor) -> Tensor:
        """Return the loss: ``(M, P), (M, P), () -> ()``; 0 without rows, still with a gradient."""
        if len(point_logits) == 0:
            return point_logits.sum()
        if 'dice' in type(self.loss).__name__.lower():
            return self.loss(point_logits, point_targets, avg_factor=num_masks)
        # Both have shape (points, 1): FocalLoss keeps targets of equal rank as they are, so that
        # the soft values at mask borders survive.
        num_points = num_masks * point_logits.shape[1]
        flat = (point_logits.reshape(-1, 1), point_targets.reshape(-1, 1))
        return self.loss(*flat, avg_factor=num_points)


class MMDetClassLoss(nn.Module):
    """Call mmdet's softmax ``CrossEntropyLoss`` as the class loss, averaged by class weight.

    ``no_object_weight`` is appended to the loss's ``class_weight`` if that has K entries.
    """

    def __init__(self, loss: Any, num_classes: int, no_object_weight: float) -> None:
        super().__init__()
        if getattr(loss, 'use_sigmoid', False):
            raise TypeError(
                f'{type(loss).__name__} with sigmoid cannot be the class loss: inference takes a '
                'softmax over the classes and no-object. Set losses.cls to '
                "dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False)."
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
        """Return the loss: ``(B, Q, K+1), (B, Q) -> ()``."""
        labels = target_classes.flatten()
        total = class_logits.new_tensor(self.loss.class_weight)[labels].sum()
        return self.loss(class_logits.flatten(0, 1), labels, avg_factor=total)
