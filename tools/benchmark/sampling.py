"""Mask logits at points on the CPU: features sampled, or masks formed and sampled.

    python -m tools.benchmark.sampling --threads 2 --csv docs/benchmarks/sampling_fp32_cpu.csv

Features of 256 channels at stride 4 of images of three sides, 12,544 points. ``matching``: 10
predictions of 100 queries at points that they share, without gradient. ``loss``: 60 matched masks,
each at points of its own, with the backward pass. ``features`` reads the features at the points and
multiplies there, ``masks`` forms the masks and reads them; which of them `core` takes is in
docs/architecture.md.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmseg_m2f.core.points import sample_features, sample_logits
from mmseg_m2f.core.structures import mask_logits
from tools.benchmark import harness

CHANNELS, STRIDE, POINTS = 256, 4, 12_544
ROWS = {'matching': 1000, 'loss': 60}
SIDES = (256, 512, 1024)
IMPLEMENTATIONS = ('features', 'masks')
# Share of the logits' range that float32 sums in another order may differ by.
TOLERANCE = 1e-4


class Problem(NamedTuple):
    """``embed (M, C)``, ``features (C, h, w)`` and ``points (1 or M, P, 2)``."""

    embed: Tensor
    features: Tensor
    points: Tensor


def main() -> None:
    """See ``harness.main``."""
    harness.main(
        harness.Benchmark(
            'tools.benchmark.sampling',
            [f'{kind}_{side}' for kind in ROWS for side in (*SIDES, 64)],
            IMPLEMENTATIONS,
            prepare,
            disagreement,
            optional=[f'{kind}_64' for kind in ROWS],
        )
    )


def prepare(case: str, implementation: str) -> harness.Step:
    """Logits at the points, in the losses with their backward pass."""
    kind = case.split('_')[0]
    return functools.partial(WAYS[kind, implementation], draw(case))


def disagreement(case: str, names: Sequence[str]) -> tuple[float, float]:
    """The largest between the logits of both ways."""
    kind = case.split('_')[0]
    one, other = (WAYS[kind, name](draw(case)) for name in IMPLEMENTATIONS)
    return float((one - other).abs().max()), TOLERANCE * float(other.max() - other.min())


def draw(case: str) -> Problem:
    """Random numbers in the order that the pixel decoder gives, the channels last."""
    kind, side = case.split('_')
    rows, size = ROWS[kind], int(side) // STRIDE
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    embed, pixels = normal(rows, CHANNELS), normal(size, size, CHANNELS)
    shared = 1 if kind == 'matching' else rows
    points = torch.rand(shared, POINTS, 2, generator=generator)
    differentiable = kind == 'loss'
    features = pixels.permute(2, 0, 1).requires_grad_(differentiable)
    return Problem(embed.requires_grad_(differentiable), features, points)


@torch.no_grad()
def matching_features(problem: Problem) -> Tensor:
    """As the matcher does it."""
    embed, features, points = problem
    return embed @ sample_features(features[None], points)[0]


@torch.no_grad()
def matching_masks(problem: Problem) -> Tensor:
    """Masks as channels of one map, so that the points are looked up once."""
    embed, features, points = problem
    return sample_features(mask_logits(embed, features)[None], points)[0]


def loss_features(problem: Problem) -> Tensor:
    """Some rows at a time, as each has points of its own."""
    embed, features, points = problem
    pieces = zip(embed.split(10), points.split(10), strict=True)
    logits = torch.cat([_one_piece(some, features, at) for some, at in pieces])
    logits.sum().backward()
    return logits.detach()


def _one_piece(embed: Tensor, features: Tensor, points: Tensor) -> Tensor:
    """As the matcher reads them, but with gradient."""
    rows = sample_features(features[None], points.flatten(0, 1)[None])[0].unflatten(
        1, points.shape[:2]
    )
    return torch.einsum('mc,cmp->mp', embed, rows)


def loss_masks(problem: Problem) -> Tensor:
    """As the criterion does it."""
    embed, features, points = problem
    logits, _ = sample_logits(embed, features, lambda _: points)
    logits.sum().backward()
    return logits.detach()


WAYS: dict[tuple[str, str], Callable[[Problem], Tensor]] = {
    ('matching', 'features'): matching_features,
    ('matching', 'masks'): matching_masks,
    ('loss', 'features'): loss_features,
    ('loss', 'masks'): loss_masks,
}


if __name__ == '__main__':
    main()
