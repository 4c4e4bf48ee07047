"""Bipartite matching of queries and targets on sampled points (paper section 3.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.config import POINT_MODES
from mmseg_m2f.core.points import SamplePoints, sample_features, sample_masks, uniform_points
from mmseg_m2f.core.structures import MaskPrediction, MaskTarget, Match, upcast_half
from mmseg_m2f.ops import linear_sum_assignment

# (class_logits (Q, K+1), point_logits (Q, P), labels (N,), point_targets (N, P)) -> (Q, N)
MatchCost = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# SciPy refuses infinite costs, so costs are clipped to this number. It is far above any real cost
# and far below float32's largest value.
COST_LIMIT = 1e10


class NonFinitePredictionError(ValueError):
    """Prediction number ``prediction`` (0 = learned queries) of ``image`` is not finite."""

    def __init__(self, prediction: int, image: int, hint: str = '') -> None:
        self.prediction, self.image = prediction, image
        super().__init__(
            f'prediction {prediction} of image {image} in the batch holds NaN or infinity, so '
            'it cannot be matched. Usual causes: a learning rate too high for the batch size, '
            f'float16 overflow, or a damaged checkpoint.{hint}'
        )


@dataclass
class ClassCost:
    """Minus the probability of the target's class, times ``weight``: in ``[-weight, 0]``.

    No-object takes part in the softmax.
    """

    weight: float = 2.0
    row_wise: ClassVar[bool] = True

    def __call__(
        self,
        class_logits: Float[Tensor, 'Q K1'],
        point_logits: Float[Tensor, 'Q P'],
        labels: Int[Tensor, 'N'],
        point_targets: Float[Tensor, 'N P'],
    ) -> Float[Tensor, 'Q N']:
        return -self.weight * class_logits.softmax(-1)[:, labels]


@dataclass
class PointMaskCost:
    """Mean binary cross-entropy over the points, times ``weight``: at least 0.

    Written as ``sum softplus(z) - z t``: one product instead of the official two, equal because
    ``softplus(-z) = softplus(z) - z``.
    """

    weight: float = 5.0
    row_wise: ClassVar[bool] = True

    def __call__(
        self,
        class_logits: Float[Tensor, 'Q K1'],
        point_logits: Float[Tensor, 'Q P'],
        labels: Int[Tensor, 'N'],
        point_targets: Float[Tensor, 'N P'],
    ) -> Float[Tensor, 'Q N']:
        total = F.softplus(point_logits).sum(-1, keepdim=True) - point_logits @ point_targets.T
        return self.weight / point_logits.shape[-1] * total


@dataclass
class PointDiceCost:
    """One minus the Dice coefficient over the points, times ``weight``: in ``[0, weight)``.

    The Dice coefficient is ``(2 s.t + 1) / (sum s + sum t + 1)`` with ``s`` the sigmoid.
    """

    weight: float = 5.0
    row_wise: ClassVar[bool] = True

    def __call__(
        self,
        class_logits: Float[Tensor, 'Q K1'],
        point_logits: Float[Tensor, 'Q P'],
        labels: Int[Tensor, 'N'],
        point_targets: Float[Tensor, 'N P'],
    ) -> Float[Tensor, 'Q N']:
        probs = point_logits.sigmoid()
        total = probs.sum(-1, keepdim=True) + point_targets.sum(-1)
        return self.weight * (1 - (2 * (probs @ point_targets.T) + 1) / (total + 1))


class HungarianMatcher:
    """Cheapest one-to-one assignment of targets to queries, for every prediction of every image.

    Args:
        costs: summed; default the paper's trio with weights 2, 5, 5. Costs that declare
            ``row_wise = True`` (each query's row depends on that query alone) see all predictions
            in one call; with one that does not, all are called per prediction.
        num_points: points per image.
        points: ``'shared'`` draws them once per image; ``'per_prediction'`` anew for each
            prediction, as the official code does.
        sample_points: draws the points: ``(rows, num_points, device, dtype)`` to ``(x, y)`` in
            [0, 1], ``(rows, num_points, 2)``. Default: uniform random points.

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
        """Return True if all predictions can be evaluated at once."""
        return all(getattr(cost, 'row_wise', False) for cost in self.costs)

    @torch.no_grad()
    def __call__(
        self,
        predictions: Sequence[MaskPrediction],
        mask_features: Float[Tensor, 'B C h w'],
        targets: Sequence[MaskTarget],
    ) -> list[Match]:
        """Match ``T`` predictions with the targets of ``B`` images.

        Returns:
            One ``Match`` per image; its indices have shape ``(T, min(Q, N))`` and lie on the
            device of the predictions.

        Raises:
            NonFinitePredictionError: a cost is NaN. Infinite costs are clamped.
        """
        with torch.autocast(mask_features.device.type, enabled=False):
            class_logits = upcast_half(torch.stack([p.class_logits for p in predictions], dim=1))
            mask_embed = upcast_half(torch.stack([p.mask_embed for p in predictions], dim=1))
            features = mask_features.to(mask_embed.dtype)
            images = zip(class_logits, mask_embed, features, targets, strict=True)
            costs = [self._cost(*image) for image in images]  # one (T, Q, N) per image
        # SciPy needs the costs on the host: one copy, the only wait for the device.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        on_host = flat.split([cost.numel() for cost in costs])
        matches = []
        for image, (values, cost) in enumerate(zip(on_host, costs, strict=True)):
            pairs = []
            for prediction, one in enumerate(values.view(cost.shape).numpy()):
                if np.isnan(one).any():
                    raise NonFinitePredictionError(prediction, image)
                pairs.append(linear_sum_assignment(one.clip(-COST_LIMIT, COST_LIMIT)))
            query_idx, target_idx = torch.from_numpy(np.array(pairs)).to(cost.device).unbind(1)
            matches.append(Match(query_idx, target_idx))
        return matches

    def _cost(
        self,
        class_logits: Float[Tensor, 'T Q K1'],
        mask_embed: Float[Tensor, 'T Q C'],
        features: Float[Tensor, 'C h w'],
        target: MaskTarget,
    ) -> Float[Tensor, 'T Q N']:
        """Sum all costs of one image at its points, where no mask has to be formed."""
        num_predictions, num_queries = class_logits.shape[:2]
        num_targets = len(target.labels)
        if num_targets == 0:  # nothing to match: no points are drawn
            return class_logits.new_zeros(num_predictions, num_queries, 0)
        is_shared = self.points == 'shared'
        num_draws = 1 if is_shared else num_predictions
        draws = self.sample_points(num_draws, self.num_points, features.device, features.dtype)
        # In one call, the queries of all predictions are rows of one long list.
        num_calls = 1 if is_shared and self.is_row_wise else num_predictions
        calls = zip(
            class_logits.reshape(num_calls, -1, class_logits.shape[-1]),
            mask_embed.reshape(num_calls, -1, mask_embed.shape[-1]),
            draws[:, None].expand(num_calls, -1, -1, -1),
            strict=True,
        )
        every_target = torch.arange(num_targets, device=features.device)
        summed = []
        for logits, embed, points in calls:
            point_logits = embed @ sample_features(features[None], points)[0]
            point_targets = sample_masks(target.masks, every_target, points)
            args = logits, point_logits, target.labels, point_targets
            summed.append(torch.stack([cost(*args) for cost in self.costs]).sum(0))
        return torch.cat(summed).view(num_predictions, num_queries, num_targets)
