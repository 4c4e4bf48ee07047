"""Deformable attention on the CPU: our back ends beside mmcv's torch path.

    python -m tools.benchmark.ops --threads 2 --csv docs/benchmarks/ops_fp32_cpu.csv

The shapes of the paper's encoder (8 heads, 3 levels, 4 points, 32 channels a head) at five images
and batches. All take what the linear layers give; mmcv's gets the softmax and the arithmetic of the
locations that its module does. The plain form in torch is ``reference``,
``grid_sample`` level by level. ``forward`` is without,
``both`` with it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmseg_m2f.ops.ms_deform_attn import BACKENDS, ms_deform_attn
from mmseg_m2f.ops.ms_deform_attn.reference import locations_and_weights
from tools.benchmark import harness

HEADS, LEVELS, POINTS, HEAD_DIM = 8, 3, 4, 32
# Height and width of the image, and the batch.
SHAPES = {
    '512x512b2': (512, 512, 2),
    '512x1024b2': (512, 1024, 2),
    '1024x1024b2': (1024, 1024, 2),
    '800x1344b1': (800, 1344, 1),
    '1024x2048b1': (1024, 2048, 1),
    '64x64b1': (64, 64, 1),
}
IMPLEMENTATIONS = ('compiled', 'reference', 'mmcv')
# Share of the range of a tensor that float32 sums in another order may differ by.
TOLERANCE = 1e-4

Operator = Callable[..., Tensor]


class Problem(NamedTuple):
    """The arguments of the operator, and a gradient of its result."""

    args: tuple[Tensor, list[tuple[int, int]], Tensor, Tensor, Tensor]
    gradient: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is differentiated: value, offsets, logits."""
        return self.args[0], self.args[3], self.args[4]


def main() -> None:
    """See ``harness.main``."""
    cases = [f'{shape}_{kind}' for shape in SHAPES for kind in ('forward', 'both')]
    harness.main(
        harness.Benchmark(
            'tools.benchmark.ops',
            cases,
            IMPLEMENTATIONS,
            prepare,
            disagreement,
            optional=[case for case in cases if case.startswith('64x64')],
        )
    )


def prepare(case: str, implementation: str) -> harness.Step:
    """One call of the operator, with its backward pass where the case says so."""
    shape, kind = case.split('_')
    problem = draw(shape, differentiable=kind == 'both')
    function = operator(implementation)
    return functools.partial(run, function, problem)


def disagreement(case: str, names: Sequence[str]) -> dict[str, harness.Agreement | str]:
    """Of results and, with a backward pass, gradients; each against mmcv's."""
    shape, kind = case.split('_')
    problem = draw(shape, differentiable=kind == 'both')
    expected = run(operator('mmcv'), problem)
    verdict: dict[str, harness.Agreement | str] = {}
    for name in names:
        objection = why_not(name, problem)
        if objection is not None:
            verdict[name] = objection
            continue
        pairs = list(zip(run(operator(name), problem), expected, strict=True))
        # Each tensor has a range of its own: the worst of the shares counts.
        found, wanted = max(pairs, key=lambda pair: difference(*pair) / value_range(pair[1]))
        limit = TOLERANCE * value_range(wanted)
        verdict[name] = harness.Agreement(difference(found, wanted), limit)
    return verdict


def draw(shape: str, *, differentiable: bool) -> Problem:
    """Every pixel of three levels asks, as in the encoder; samples lie a few pixels away.

    None lies within a tenth of a pixel of where gradients jump.
    """
    height, width, batch = SHAPES[shape]
    levels = [(height // stride, width // stride) for stride in (32, 16, 8)]
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    tokens = sum(h * w for h, w in levels)
    centres = [
        torch.stack(torch.meshgrid(_centres(w), _centres(h), indexing='xy'), -1).flatten(0, 1)
        for h, w in levels
    ]
    points = torch.cat(centres)
    offsets = 2 * normal(batch, tokens, HEADS, LEVELS, POINTS, 2)
    share = 0.1 + 0.8 * torch.rand(offsets.shape, generator=generator)
    problem = Problem(
        (
            normal(batch, tokens, HEADS, HEAD_DIM),
            levels,
            points,
            within_pixels(levels, points, offsets, share),
            normal(batch, tokens, HEADS, LEVELS, POINTS),
        ),
        normal(batch, tokens, HEADS * HEAD_DIM),
    )
    for leaf in problem.leaves:
        leaf.requires_grad_(differentiable)
    return problem


def within_pixels(
    levels: list[tuple[int, int]], points: Tensor, offsets: Tensor, share: Tensor
) -> Tensor:
    """Offsets to the same pixels, ``share`` of the way to the next.

    On the line between two pixels the gradient of an offset jumps, and rounding decides the side.
    """
    extent = torch.tensor([(width, height) for height, width in levels])[:, None]
    centre = points[:, None, None, None] * extent - 0.5
    return (centre + offsets).floor() + share - centre


def _centres(size: int) -> Tensor:
    return (torch.arange(size) + 0.5) / size


def operator(implementation: str) -> Operator:
    """The operator of one implementation; mmcv is imported by those who ask for it."""
    if implementation != 'mmcv':
        return functools.partial(ms_deform_attn, backend=implementation)
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    def run_mmcv(
        value: Tensor,
        levels: list[tuple[int, int]],
        points: Tensor,
        offsets: Tensor,
        logits: Tensor,
    ) -> Tensor:
        locations, weights = locations_and_weights(value, levels, points, offsets, logits)
        return multi_scale_deformable_attn_pytorch(value, torch.tensor(levels), locations, weights)

    return run_mmcv


def why_not(implementation: str, problem: Problem) -> str | None:
    """Why a back end cannot run, if so."""
    if implementation == 'mmcv':
        return None
    try:
        BACKENDS.choose(implementation, *problem.args)
    except ValueError as error:
        return str(error)
    return None


def run(function: Operator, problem: Problem) -> list[Tensor]:
    """The result and, if the problem is differentiable, the three gradients."""
    result = function(*problem.args)
    if not result.requires_grad:
        return [result]
    return [result.detach(), *torch.autograd.grad(result, problem.leaves, problem.gradient)]


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest."""
    return float((found - wanted).abs().max())


def value_range(values: Tensor) -> float:
    """From the least to the greatest."""
    return float(values.max() - values.min())


if __name__ == '__main__':
    main()
