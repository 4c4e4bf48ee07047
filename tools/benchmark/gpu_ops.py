"""Deformable attention on a GPU: our back ends beside mmcv's operator.

    python -m tools.benchmark.gpu_ops OUT [--dry-run]

The shapes of the paper's encoder at five images and batches, as in ``ops``; value, offsets and
logits in float32, float16 and bfloat16. All take what the linear layers give; mmcv's operator gets
the softmax and the arithmetic of the locations that its module does. The time is the GPU's alone,
with a cold cache; beside it stand the largest difference to float64 (forward: of the result,
backward: of the worst gradient) and the least time in which the bytes of all inputs and outputs
move, at the bandwidth of a large copy. ``peak_mib`` of backward is that of both passes together.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmseg_m2f.ops.ms_deform_attn.reference import locations_and_weights
from tools.benchmark import gpu_timing, harness, ops

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
# The baseline of all ratios last.
IMPLEMENTATIONS = ('triton', 'reference', 'mmcv')
OURS = ('triton', 'reference')
# Share of the range of a tensor that may be lost: to sums in another order, and to rounding.
LIMITS = {'fp32': 1e-4, 'fp16': 1e-2, 'bf16': 5e-2}
ROUNDS, BUDGET = 4, 0.25


class Checked(NamedTuple):
    """An implementation that runs, and its largest differences to float64.

    ``share`` is the worst of all tensors as a share of what the tensor ranges over.
    """

    function: ops.Operator
    forward: float
    backward: float
    share: float


def main() -> None:
    """Time every shape in every type."""
    options = gpu_timing.parse(__doc__)
    table = gpu_timing.Table('gpu-ops', options)
    speed = gpu_timing.bandwidth(options.device)
    print(f'a large copy moves {speed / 1e12:.3g} TB/s')
    shapes = [name for name in ops.SHAPES if (name == '64x64b1') == options.dry_run]
    for shape in shapes:
        for dtype in DTYPES:
            compare(table, options.device, shape, dtype, speed)
    table.finish()


def compare(
    table: gpu_timing.Table, device: torch.device, shape: str, dtype: str, speed: float
) -> None:
    """Check all implementations on one shape in one type, then time them by turns."""
    case = f'{shape}_{dtype}'
    problem = draw(shape, DTYPES[dtype], device)
    expected = ops.run(ops.operator('reference'), in_float64(problem))
    checked: dict[str, Checked] = {}
    for name in IMPLEMENTATIONS:
        objection = ops.why_not(name, problem)
        if objection is not None:
            # On a GPU ours must run; the others may be missing.
            must_run = name in OURS and device.type == 'cuda'
            (table.fail if must_run else table.leave_out)(case, name, objection)
            continue
        found = gpu_timing.attempt(
            table,
            case,
            name,
            functools.partial(check, name, problem, expected),
            ours=name in OURS,
        )
        if found is not None and _is_sound(table, case, name, found, LIMITS[dtype]):
            checked[name] = found
    del expected
    for kind in ('forward', 'backward'):
        work = functools.partial(measure, kind, checked, problem, device)
        figures = gpu_timing.attempt(table, case, kind, work, ours=True) or {}
        floor = minimal_bytes(kind, problem) / speed
        table.add(f'{case}_{kind}', figures, figures.get(IMPLEMENTATIONS[-1]), floor)


def draw(shape: str, dtype: torch.dtype, device: torch.device) -> ops.Problem:
    """The problem of ``ops``."""
    drawn = ops.draw(shape, differentiable=False)
    value, levels, points, offsets, logits = drawn.args
    moved = [tensor.to(device, dtype) for tensor in (value, offsets, logits)]
    for leaf in moved:
        leaf.requires_grad_()
    value, offsets, logits = moved
    args = (value, levels, points.to(device), offsets, logits)
    return ops.Problem(args, drawn.gradient.to(device, dtype))


def in_float64(problem: ops.Problem) -> ops.Problem:
    """The same numbers, as the type of the problem has rounded them."""
    value, levels, points, offsets, logits = problem.args
    exact = [leaf.detach().double().requires_grad_() for leaf in (value, offsets, logits)]
    args = (exact[0], levels, points.double(), exact[1], exact[2])
    return ops.Problem(args, problem.gradient.double())


def operator(name: str, device: torch.device) -> ops.Operator:
    """The operator of one implementation; mmcv's own kernel where there is a GPU."""
    return run_mmcv if name == 'mmcv' and device.type == 'cuda' else ops.operator(name)


def run_mmcv(
    value: Tensor,
    levels: list[tuple[int, int]],
    points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """The kernel of mmcv, which rounds locations and weights to the type of ``value``."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    locations, weights = locations_and_weights(value, levels, points, offsets, logits)
    shapes, starts = _level_tensors(tuple(levels), value.device)
    batch = value.shape[0]
    return MultiScaleDeformableAttnFunction.apply(
        value, shapes, starts, locations.contiguous(), weights.contiguous(), batch
    )


@functools.lru_cache
def _level_tensors(
    levels: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    shapes = torch.tensor(levels, device=device)
    areas = shapes.prod(1)
    return shapes, areas.cumsum(0) - areas


def check(name: str, problem: ops.Problem, expected: list[Tensor]) -> Checked:
    """Run both passes once and compare with float64."""
    function = operator(name, problem.gradient.device)
    found = ops.run(function, problem)
    differences = [ops.difference(*pair) for pair in zip(found, expected, strict=True)]
    shares = [
        difference / ops.value_range(wanted)
        for difference, wanted in zip(differences, expected, strict=True)
    ]
    # ``max`` may pass over NaN.
    share = math.nan if any(map(math.isnan, shares)) else max(shares)
    worst = max(range(1, len(shares)), key=shares.__getitem__)
    return Checked(function, differences[0], differences[worst], share)


def _is_sound(table: gpu_timing.Table, case: str, name: str, found: Checked, limit: float) -> bool:
    """Whether a time is worth anything; a peer that loses more is timed, and said to do so."""
    # Written so that NaN fails.
    if found.share <= limit:
        return True
    text = f'differs from float64 by {found.share:.3g} of the range of a tensor'
    if name in OURS:
        table.fail(case, name, text)
        return False
    print(f'{case} {name}: {text}: more than is allowed of ours', flush=True)
    return True


def measure(
    kind: str, checked: Mapping[str, Checked], problem: ops.Problem, device: torch.device
) -> dict[str, gpu_timing.Figures]:
    """Figures of those that run, of the forward pass without gradients or the backward alone."""
    steps = {name: step_of(kind, found.function, problem) for name, found in checked.items()}
    seconds = gpu_timing.timed_by_turns(
        steps, device, rounds=ROUNDS, budget=BUDGET, kernels_only=True
    )
    steps.clear()
    return {
        name: gpu_timing.Figures(
            seconds[name],
            gpu_timing.peak_mib(functools.partial(one_pass, kind, found.function, problem), device),
            getattr(found, kind),
            gpu_timing.count_synchronisations(
                functools.partial(one_pass, kind, found.function, problem), device
            ),
        )
        for name, found in checked.items()
    }


def step_of(kind: str, function: ops.Operator, problem: ops.Problem) -> harness.Step:
    """What is timed: the backward pass is of one result that is kept."""
    if kind == 'forward':
        return functools.partial(one_pass, kind, function, problem)
    result = function(*problem.args)

    def backward() -> None:
        torch.autograd.grad(result, problem.leaves, problem.gradient, retain_graph=True)

    return backward


def one_pass(kind: str, function: ops.Operator, problem: ops.Problem) -> None:
    """What memory and synchronisations are of: the result alone, or with its gradients."""
    if kind == 'forward':
        with torch.no_grad():
            function(*problem.args)
    else:
        ops.run(function, problem)


def minimal_bytes(kind: str, problem: ops.Problem) -> int:
    """Inputs and output moved once; backward, also the gradients of the three leaves."""
    leaves = sum(leaf.nbytes for leaf in problem.leaves)
    return problem.gradient.nbytes + leaves * (1 if kind == 'forward' else 2)


if __name__ == '__main__':
    main()
