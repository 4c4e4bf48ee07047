"""Bipartite matching of queries and targets on sampled points (paper section 3.3)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.config import POINT_MODES
from mmseg_m2f.core.points import SamplePoints, sample_masks, sample_pixels, uniform_points
from mmseg_m2f.core.structures import MaskPrediction, MaskTarget, Match, upcast_half
from mmseg_m2f.ops import linear_sum_assignment

# (class_logits (Q, K+1), point_logits (Q, P), labels (N,), point_targets (N, P)) -> (Q, N)
MatchCost = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# SciPy refuses infinities; far above any real cost, far below float32's largest value.
COST_LIMIT = 1e10


class NonFinitePredictionError(ValueError):
    """Prediction number ``prediction`` (0 = learnt queries) of ``image`` is not finite."""

    def __init__(self, prediction: int, image: int, hint: str = '') -> None:
        self.prediction, self.image = prediction, image
        super().__init__(
            f'prediction {prediction} of image {image} in the batch holds NaN or infinity, so '
            'it cannot be matched. Usual causes: a learning rate too high for the batch size, '
            f'float16 overflow, or a damaged checkpoint.{hint}'
        )


class ClassCost:
    """``-softmax(class_logits)[label]``, no-object included in the softmax, times ``weight``."""

    row_wise = True

    def __init__(self, weight: float = 2.0) -> None:
        self.weight = weight

    def __call__(
        self,
        class_logits: Float[Tensor, 'Q K1'],
        point_logits: Float[Tensor, 'Q P'],
        labels: Int[Tensor, 'N'],
        point_targets: Float[Tensor, 'N P'],
    ) -> Float[Tensor, 'Q N']:
        """Cost of giving each target to each query, in ``[-weight, 0]``."""
        return -self.weight * class_logits.softmax(-1)[:, labels]


class PointMaskCost:
    """Mean binary cross-entropy over the points, times ``weight``.

    Written as ``sum softplus(z) - z t``: one product instead of the official two, equal because
    ``softplus(-z) = softplus(z) - z``.
    """

    row_wise = True

    def __init__(self, weight: float = 5.0) -> None:
        self.weight = weight

    def __call__(
        self,
        class_logits: Float[Tensor, 'Q K1'],
        point_logits: Float[Tensor, 'Q P'],
        labels: Int[Tensor, 'N'],
        point_targets: Float[Tensor, 'N P'],
    ) -> Float[Tensor, 'Q N']:
        """Non-negative cost of each pair."""
        total = F.softplus(point_logits).sum(-1, keepdim=True) - point_logits @ point_targets.T
        return self.weight / point_logits.shape[-1] * total


class PointDiceCost:
    """``1 - (2 s.t + 1) / (sum s + sum t + 1)`` over the points, times ``weight``."""

    row_wise = True

    def __init__(self, weight: float = 5.0) -> None:
        self.weight = weight

    def __call__(
        self,
        class_logits: Float[Tensor, 'Q K1'],
        point_logits: Float[Tensor, 'Q P'],
        labels: Int[Tensor, 'N'],
        point_targets: Float[Tensor, 'N P'],
    ) -> Float[Tensor, 'Q N']:
        """Cost of each pair, in ``[0, weight)``."""
        probs = point_logits.sigmoid()
        total = probs.sum(-1, keepdim=True) + point_targets.sum(-1)
        return self.weight * (1 - (2 * (probs @ point_targets.T) + 1) / (total + 1))


class HungarianMatcher:
    """Cheapest one-to-one assignment of targets to queries, for every prediction of every image.

    Costs that declare ``row_wise = True`` (each query's row depends on that query alone) are
    evaluated for all predictions at once; one foreign cost sends all costs through a loop over the
    predictions. All costs reach the host in one transfer.

    Args:
        costs: summed; default the paper's trio with weights 2, 5, 5.
        num_points: points per image.
        points: ``'shared'`` draws them once per image; ``'per_prediction'`` anew for each
            prediction, as the official code does.
        sample_points: draws the points.

    Source: official ``modeling/matcher.py``.
    """

    def __init__(
        self,
        costs: Sequence[MatchCost] | None = None,
        num_points: int = 12544,
        points: str = 'shared',
        sample_points: SamplePoints = uniform_points,
    ) -> None:
        if points not in POINT_MODES:
            raise ValueError(f'points must be one of {POINT_MODES}, got {points!r}')
        if num_points <= 0:
            raise ValueError(f'num_points must be positive, got {num_points}')
        paper = (ClassCost(), PointMaskCost(), PointDiceCost())
        self.costs: list[MatchCost] = list(paper if costs is None else costs)
        if not self.costs:
            raise ValueError('the matcher needs at least one cost, got none')
        self.num_points, self.points, self.sample_points = num_points, points, sample_points

    @property
    def is_row_wise(self) -> bool:
        """True if all predictions can be evaluated at once."""
        return all(getattr(cost, 'row_wise', False) for cost in self.costs)

    @torch.no_grad()
    def __call__(
        self,
        predictions: Sequence[MaskPrediction],
        mask_features: Float[Tensor, 'B C h w'],
        targets: Sequence[MaskTarget],
    ) -> list[Match]:
        """Match ``L+1`` predictions with the targets of ``B`` images.

        Returns:
            One ``Match`` per image; its indices have shape ``(L+1, min(Q, N))`` and lie on the
            device of the predictions.

        Raises:
            NonFinitePredictionError: a cost is NaN. Infinite costs are clamped.
        """
        with torch.autocast(mask_features.device.type, enabled=False):
            class_logits = upcast_half(torch.stack([p.class_logits for p in predictions]))
            mask_embed = upcast_half(torch.stack([p.mask_embed for p in predictions]))
            features = mask_features.to(mask_embed.dtype)
            costs = [
                self._image_cost(class_logits[:, i], mask_embed[:, i], features[i], target)
                for i, target in enumerate(targets)
            ]
        # The only device-to-host copy of the matching: scipy needs the costs on the host.
        host = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        solved, start = [], 0
        for image, cost in enumerate(costs):
            end = start + cost.numel()
            solved.append(_solve(host[start:end].reshape(cost.shape), image))
            start = end
        return _to_device(solved, mask_features.device)

    def _image_cost(
        self,
        class_logits: Float[Tensor, 'L Q K1'],
        mask_embed: Float[Tensor, 'L Q C'],
        features: Float[Tensor, 'C h w'],
        target: MaskTarget,
    ) -> Float[Tensor, 'L Q N']:
        num_predictions = len(class_logits)
        if len(target.labels) == 0:
            return class_logits.new_zeros(num_predictions, class_logits.shape[1], 0)
        num_draws = 1 if self.points == 'shared' else num_predictions
        points = self.sample_points(num_draws, self.num_points, features.device, features.dtype)
        if num_draws == 1 and self.is_row_wise:
            point_logits, point_targets = self._at_points(mask_embed, features, target, points)
            rows = (class_logits.flatten(0, 1), point_logits.flatten(0, 1))
            cost = self._cost(*rows, target.labels, point_targets)
            return cost.unflatten(0, (num_predictions, -1))
        return torch.stack(
            [
                self._one_prediction(class_logits[i], mask_embed[i], features, target, draw)
                for i, draw in enumerate(points[:, None].expand(num_predictions, -1, -1, -1))
            ]
        )

    def _one_prediction(
        self,
        class_logits: Float[Tensor, 'Q K1'],
        mask_embed: Float[Tensor, 'Q C'],
        features: Float[Tensor, 'C h w'],
        target: MaskTarget,
        points: Float[Tensor, '1 P 2'],
    ) -> Float[Tensor, 'Q N']:
        point_logits, point_targets = self._at_points(mask_embed, features, target, points)
        return self._cost(class_logits, point_logits, target.labels, point_targets)

    def _at_points(
        self,
        mask_embed: Float[Tensor, '*L Q C'],
        features: Float[Tensor, 'C h w'],
        target: MaskTarget,
        points: Float[Tensor, '1 P 2'],
    ) -> tuple[Float[Tensor, '*L Q P'], Float[Tensor, 'N P']]:
        """Mask logits and targets at the points: features are sampled, masks never formed."""
        point_logits = mask_embed @ sample_pixels(features, points[0]).T
        all_masks = torch.arange(len(target.masks), device=points.device)
        return point_logits, sample_masks(target.masks, all_masks, points)

    def _cost(
        self, class_logits: Tensor, point_logits: Tensor, labels: Tensor, point_targets: Tensor
    ) -> Tensor:
        parts = [cost(class_logits, point_logits, labels, point_targets) for cost in self.costs]
        return torch.stack(parts).sum(0)


def _solve(cost: np.ndarray, image: int) -> np.ndarray:
    """Query and target indices, ``(2, L, M)`` int64, of one image's ``(L, Q, N)`` costs."""
    nan = np.isnan(cost).any(axis=(1, 2))
    if nan.any():
        raise NonFinitePredictionError(int(nan.argmax()), image)
    pairs = [linear_sum_assignment(one) for one in cost.clip(-COST_LIMIT, COST_LIMIT)]
    return np.stack([np.stack(column) for column in zip(*pairs, strict=True)])


def _to_device(solved: Sequence[np.ndarray], device: torch.device) -> list[Match]:
    """All indices in one host-to-device copy."""
    flat = torch.from_numpy(np.concatenate([pairs.ravel() for pairs in solved]))
    flat = flat.to(device, non_blocking=True)
    parts = flat.split([pairs.size for pairs in solved])
    return [Match(*part.view(pairs.shape)) for part, pairs in zip(parts, solved, strict=True)]
