"""Small random inputs, and what several parts must keep."""

import torch
from torch.nn import functional as F

from mmseg_m2f.core.structures import MaskPrediction, MaskTarget
from tests.core.watching import gradients_and_saved_bytes


def fixed_points(num_rows, num_points, device, dtype):
    """The same points whatever the row and the image: a generator of their own."""
    generator = torch.Generator().manual_seed(num_points)
    points = torch.rand(1, num_points, 2, generator=generator, dtype=torch.float64)
    return points.to(device, dtype).expand(num_rows, -1, -1)


def make_target(num_targets, num_classes=4):
    labels = torch.randint(num_classes, (num_targets,))
    return MaskTarget(labels, torch.rand(num_targets, 24, 32) < 0.5)


def make_inputs(num_targets, num_predictions=3, dtype=torch.float32):
    """Predictions of 5 queries and 4 classes, mask features and targets, an image per entry."""
    batch = len(num_targets)
    predictions = [
        MaskPrediction(torch.randn(batch, 5, 5, dtype=dtype), torch.randn(batch, 5, 8, dtype=dtype))
        for _ in range(num_predictions)
    ]
    targets = [make_target(number) for number in num_targets]
    return predictions, torch.randn(batch, 8, 6, 8, dtype=dtype), targets


def pairwise_losses(logits, targets):
    """Cross-entropy and Dice loss of each of the rows ``(Q, P)`` with each of ``(N, P)``."""
    z, t = torch.broadcast_tensors(logits[:, None], targets[None])
    bce = F.binary_cross_entropy_with_logits(z, t, reduction='none').mean(-1)
    s = z.sigmoid()
    return bce, 1 - (2 * (s * t).sum(-1) + 1) / (s.sum(-1) + t.sum(-1) + 1)


def assert_checkpointing_is_exact_and_keeps_less(plain, frugal, loss):
    """``loss`` of a model with ``layers``, and of its twin that checkpoints them."""
    frugal.load_state_dict(plain.state_dict())
    (grads, saved), (frugal_grads, frugal_saved) = (
        gradients_and_saved_bytes(lambda model=model: loss(model), list(model.layers.parameters()))
        for model in (plain, frugal)
    )
    assert all(map(torch.equal, grads, frugal_grads))
    assert frugal_saved < 0.5 * saved
