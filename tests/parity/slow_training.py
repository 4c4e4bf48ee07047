"""Matching and losses spelled out: one image, one query, one target at a time.

From the paper's text (arXiv:2112.01527, section 3.3 and appendix) and the published settings, with
nothing of the package: bilinear values are read pixel by pixel, assignments are SciPy's.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

CLASS, MASK, DICE = 2.0, 5.0, 5.0
# The official code keeps it in single precision, where 0.1 is 1.5e-9 more.
NO_OBJECT = float(np.float32(0.1))
OVERSAMPLING, IMPORTANCE = 3, 0.75


class Target(NamedTuple):
    """The targets of an image: ``labels (N,)``, ``masks (N, H, W)`` as numbers, input-sized."""

    labels: Tensor
    masks: Tensor


class Points(NamedTuple):
    """Draws of one image, (x, y) in [0, 1]; L predictions, M = min(queries, targets).

    ``match`` is (L or 1, P, 2), ``candidates`` (L, M, 3P, 2), ``rest`` (L, M, P / 4, 2).
    """

    match: Tensor
    candidates: Tensor
    rest: Tensor


def draw_points(num_targets, num_queries, num_points, num_predictions, *, shared):
    """Draw from the global generator, in float64."""
    pairs, num_uncertain = min(num_targets, num_queries), int(IMPORTANCE * num_points)
    shapes = (
        (1 if shared else num_predictions, num_points),
        (num_predictions, pairs, OVERSAMPLING * num_points),
        (num_predictions, pairs, num_points - num_uncertain),
    )
    return Points(*(torch.rand(*shape, 2, dtype=torch.float64) for shape in shapes))


def read(image, points):
    """Bilinear values (P,) of ``image`` (h, w), pixels centered at one half, zero outside."""
    height, width = image.shape
    padded = F.pad(image, (1, 1, 1, 1))
    x, y = points[:, 0] * width + 0.5, points[:, 1] * height + 0.5
    left, top = x.floor().long(), y.floor().long()
    right_share, bottom_share = x - left, y - top
    upper = padded[top, left] * (1 - right_share) + padded[top, left + 1] * right_share
    lower = padded[top + 1, left] * (1 - right_share) + padded[top + 1, left + 1] * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


def dice(probs, truth):
    return 1 - (2 * (probs * truth).sum() + 1) / (probs.sum() + truth.sum() + 1)


def cross_entropy(logits, truth):
    return (F.softplus(-logits) * truth + F.softplus(logits) * (1 - truth)).mean()


@torch.no_grad()
def match(class_logits, masks, target, points):
    """Pairs (query, target) of one prediction of one image."""
    if len(target.labels) == 0:
        return []
    truths = [read(mask, points) for mask in target.masks]
    cost = np.zeros((len(masks), len(truths)))
    for q, mask in enumerate(masks):
        logits, probs = read(mask, points), class_logits[q].softmax(0)
        for n, truth in enumerate(truths):
            mask_cost = MASK * cross_entropy(logits, truth) + DICE * dice(logits.sigmoid(), truth)
            cost[q, n] = mask_cost - CLASS * probs[target.labels[n]]
    return [(int(q), int(n)) for q, n in zip(*linear_sum_assignment(cost), strict=True)]


def loss_points(logits, candidates, rest):
    """Draw points for one mask: the least certain candidates for three quarters, and the rest."""
    certainty = read(logits.detach(), candidates).abs()
    num_uncertain = int(IMPORTANCE * (len(candidates) // OVERSAMPLING))
    return torch.cat([candidates[certainty.argsort()[:num_uncertain]], rest])


def losses(class_logits, mask_logits, targets, points, num_masks):
    """The three weighted terms of one prediction, ``(B, Q, K+1)`` and ``(B, Q, h, w)``.

    Draws are those of this prediction: without the axis of the predictions.
    """
    nll, total, mask_loss, dice_loss = (class_logits.new_zeros(()) for _ in range(4))
    no_object = class_logits.shape[-1] - 1
    for i, (target, draws) in enumerate(zip(targets, points, strict=True)):
        pairs = match(class_logits[i], mask_logits[i], target, draws.match)
        classes = [no_object] * class_logits.shape[1]
        for row, (q, n) in enumerate(pairs):
            classes[q] = int(target.labels[n])
            logits = mask_logits[i, q]
            chosen = loss_points(logits, draws.candidates[row], draws.rest[row])
            z, t = read(logits, chosen), read(target.masks[n], chosen)
            mask_loss = mask_loss + cross_entropy(z, t)
            dice_loss = dice_loss + dice(z.sigmoid(), t)
        for q, label in enumerate(classes):
            weight = NO_OBJECT if label == no_object else 1.0
            nll = nll - weight * class_logits[i, q].log_softmax(0)[label]
            total = total + weight
    return {
        'loss_cls': CLASS * nll / total,
        'loss_mask': MASK * mask_loss / num_masks,
        'loss_dice': DICE * dice_loss / num_masks,
    }


def all_losses(predictions, targets, points, num_masks=None):
    """Return all losses, the last without a prefix; the number of targets divides the masks'."""
    if num_masks is None:
        num_masks = max(sum(len(target.labels) for target in targets), 1)
    found = {}
    for index, (class_logits, mask_logits) in enumerate(predictions):
        draws = [
            Points(p.match[index % len(p.match)], p.candidates[index], p.rest[index])
            for p in points
        ]
        prefix = '' if index == len(predictions) - 1 else f'd{index}.'
        terms = losses(class_logits, mask_logits, targets, draws, num_masks)
        found.update({prefix + name: value for name, value in terms.items()})
    return found
