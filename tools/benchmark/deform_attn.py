"""Deformable attention alone, at the sizes of the paper's encoder.

8 heads of 32 channels, 3 levels, 4 points; every pixel of the three levels asks. All take what the
linear layers give: mmcv's operator gets the softmax and the arithmetic of the locations that its
module does. Results and gradients are compared with those of our reference in float64.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmseg_m2f.ops.ms_deform_attn import ms_deform_attn
from mmseg_m2f.ops.ms_deform_attn.reference import locations_and_weights
from tools.benchmark.cases import Case
from tools.benchmark.measure import Agreement, Step

HEADS, LEVELS, POINTS, HEAD_DIM = 8, 3, 4, 32
STRIDES = (32, 16, 8)
# Rounding errors that may add up: of a location, up to as many pixels as a level is wide, and of a
# sum over the points of a query and their four neighbors.
SAFETY, TERMS = 4, LEVELS * POINTS * 4

Operator = Callable[..., Tensor]


class Problem(NamedTuple):
    """The arguments of the operator, and a gradient of its result."""

    args: tuple[Tensor, list[tuple[int, int]], Tensor, Tensor, Tensor]
    gradient: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Value, offsets and logits: what is differentiated."""
        return self.args[0], self.args[3], self.args[4]

    def to(self, dtype: torch.dtype, device: torch.device | str = 'cpu') -> 'Problem':
        """Return a copy in another type, whose leaves require a gradient."""
        value, levels, points, offsets, logits = self.args
        moved = [x.detach().to(device, dtype, copy=True) for x in (value, offsets, logits)]
        for leaf in moved:
            leaf.requires_grad_()
        points = points.to(device, torch.promote_types(dtype, points.dtype))
        args = (moved[0], levels, points, moved[1], moved[2])
        return Problem(args, self.gradient.to(device, dtype))


def prepare(case: Case, implementation: str) -> Step:
    """Return one call of the operator, with its backward pass if the case has both."""
    problem, function = draw(case.size, case.batch), operator(implementation)
    if case.part != 'forward':
        return functools.partial(run, function, problem)

    def forward() -> None:
        with torch.no_grad():
            function(*problem.args)

    return forward


def compare(case: Case, implementations: Sequence[str]) -> dict[str, Agreement]:
    """Compare the result and the gradients of each implementation with float64."""
    problem = draw(case.size, case.batch)
    expected = run(operator('reference'), problem.to(torch.float64))
    return {name: agreement(operator(name), problem, expected) for name in implementations}


def agreement(function: Operator, problem: Problem, expected: Sequence[Tensor]) -> Agreement:
    """Return the largest difference of any tensor from float64, as a share of its range."""
    found = run(function, problem)
    pairs = list(zip(found, expected, strict=True))
    differences = torch.stack([(x - exact).abs().max() for x, exact in pairs])
    ranges = torch.stack([exact.max() - exact.min() for exact in expected])
    width = max(width for _, width in problem.args[1])
    limit = SAFETY * (width + TERMS) * torch.finfo(problem.gradient.dtype).eps
    return Agreement(float((differences / ranges).max()), limit, float(differences.max()))


def draw(size: tuple[int, int], batch: int) -> Problem:
    """Draw the problem of images of `size`, with samples a few pixels away from the queries."""
    levels = [(size[0] // stride, size[1] // stride) for stride in STRIDES]
    normal = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    tokens = sum(height * width for height, width in levels)
    centers = [
        torch.stack(torch.meshgrid(_centers(w), _centers(h), indexing='xy'), -1).flatten(0, 1)
        for h, w in levels
    ]
    points = torch.cat(centers)
    offsets = _within_pixels(levels, points, 2 * normal(batch, tokens, HEADS, LEVELS, POINTS, 2))
    value = normal(batch, tokens, HEADS, HEAD_DIM)
    logits = normal(batch, tokens, HEADS, LEVELS, POINTS)
    problem = Problem(
        (value, levels, points, offsets, logits), normal(batch, tokens, HEADS * HEAD_DIM)
    )
    return problem.to(torch.float32)


def _centers(size: int) -> Tensor:
    return (torch.arange(size) + 0.5) / size


def _within_pixels(levels: list[tuple[int, int]], points: Tensor, offsets: Tensor) -> Tensor:
    """Move each sample away from the line between two pixels.

    The gradient of an offset jumps there, and rounding would decide the side.
    """
    extent = torch.tensor([(width, height) for height, width in levels])[:, None]
    center = points[:, None, None, None] * extent - 0.5
    pixel = (center + offsets).floor()
    share = 0.1 + 0.8 * (center + offsets - pixel)
    return pixel + share - center


def operator(implementation: str) -> Operator:
    """Return the operator of an implementation: `mmcv`, `ours`, or one of our back ends."""
    if implementation == 'mmcv':
        return run_mmcv
    backend = 'auto' if implementation == 'ours' else implementation
    return functools.partial(ms_deform_attn, backend=backend)


def run_mmcv(
    value: Tensor, levels: list[tuple[int, int]], points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Run mmcv's operator: its kernel on a GPU, else its form in PyTorch."""
    from mmcv.ops import multi_scale_deform_attn as mmcv

    locations, weights = locations_and_weights(value, levels, points, offsets, logits)
    shapes = torch.tensor(levels, device=value.device)
    if value.device.type == 'cpu':
        return mmcv.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    areas = shapes.prod(1)
    arguments = (value, shapes, areas.cumsum(0) - areas, locations.contiguous())
    return mmcv.MultiScaleDeformableAttnFunction.apply(
        *arguments, weights.contiguous(), value.shape[0]
    )


def run(function: Operator, problem: Problem) -> list[Tensor]:
    """Return the result and the three gradients."""
    result = function(*problem.args)
    return [result.detach(), *torch.autograd.grad(result, problem.leaves, problem.gradient)]
