"""Cases of ``test_ms_deform_attn_triton.py``, which runs them in a process of their own.

Triton reads TRITON_INTERPRET when it is imported: a process either interprets, on the CPU, or
compiles, for the GPU.
"""

import os
from typing import NamedTuple

import pytest
import torch

from mmseg_m2f.ops.ms_deform_attn import triton as backend

IS_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if IS_INTERPRETED else 'cuda'
# A result is computed in float32 and rounded once, by up to half a unit in the last place; the
# interpreter cuts bfloat16 off instead, by up to a whole one.
ROUNDING = {
    torch.float32: 0,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-7 if IS_INTERPRETED else 2**-8,
}
# Sums of some hundred products of numbers around one in float32, at positions up to some 20 pixels
# (hence known to 2e-6) on maps that rise by one or two per pixel.
SUMMING = 5e-5


class Case(NamedTuple):
    value: torch.Tensor
    level_shapes: list[tuple[int, int]]
    reference_points: torch.Tensor
    offsets: torch.Tensor
    logits: torch.Tensor

    @property
    def leaves(self):
        return self.value, self.offsets, self.logits


def make_case(
    level_shapes,
    *,
    batch=2,
    queries=5,
    heads=2,
    head_dim=8,
    points=2,
    dtype=torch.float32,
    samples_dtype=torch.float32,
):
    """Points lie up to several pixels outside the maps."""
    levels = len(level_shapes)
    tokens = sum(height * width for height, width in level_shapes)
    offsets = 3 * torch.randn(batch, queries, heads, levels, points, 2)
    logits = 3 * torch.randn(batch, queries, heads, levels, points)
    return Case(
        torch.randn(batch, tokens, heads, head_dim).to(DEVICE, dtype),
        level_shapes,
        torch.rand(queries, 2).to(DEVICE),
        offsets.to(DEVICE, samples_dtype),
        logits.to(DEVICE, samples_dtype),
    )


def by_indexing(value, level_shapes, reference_points, offsets, logits):
    """The contract in float64: each sample gathers its four pixels one by one."""
    image = torch.arange(len(value)).view(-1, 1, 1, 1)
    head = torch.arange(value.shape[2]).view(-1, 1)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    out, start = 0, 0
    for level, (height, width) in enumerate(level_shapes):
        reference = reference_points[:, None, None] * torch.tensor([width, height])
        x, y = (reference + offsets[:, :, :, level] - 0.5).unbind(-1)  # (B, Q, heads, P)
        for right, below in ((0, 0), (0, 1), (1, 0), (1, 1)):
            column, row = x.detach().floor() + right, y.detach().floor() + below
            is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * is_inside
            token = (start + (row * width + column) * is_inside).long()
            pixel = value[image, token, head]  # (B, Q, heads, P, D)
            out = out + ((share * weights[:, :, :, level])[..., None] * pixel).sum(-2)
        start += height * width
    return out.flatten(2)


def gradients(function, case, grad_out):
    leaves = [leaf.detach().requires_grad_() for leaf in case.leaves]
    value, offsets, logits = leaves
    out = function(value, case.level_shapes, case.reference_points, offsets, logits)
    return out.detach(), torch.autograd.grad(out, leaves, grad_out.to(out.dtype))


def check(case):
    """Output and gradients against the contract in float64, from the same rounded inputs."""
    batch, queries, heads = case.logits.shape[:3]
    grad_out = torch.randn(batch, queries, heads * case.value.shape[-1]).to(case.value)
    got, grads = gradients(backend.ms_deform_attn_triton, case, grad_out)
    double = Case(*(x.cpu().double() if isinstance(x, torch.Tensor) else x for x in case))
    exact, exact_grads = gradients(by_indexing, double, grad_out.cpu().double())
    triples = zip((got, *grads), (exact, *exact_grads), (case.value, *case.leaves), strict=True)
    for result, true, like in triples:
        assert result.dtype == like.dtype
        torch.testing.assert_close(
            result.cpu().double(), true, rtol=ROUNDING[like.dtype], atol=SUMMING
        )


@pytest.mark.parametrize(
    'level_shapes',
    [
        [(4, 4)],
        [(1, 1)],
        [(1, 6), (6, 1), (3, 5)],
        [(2, 3), (3, 4), (5, 2), (1, 1), (4, 3)],
    ],
    ids=['one', 'pixel', 'three', 'five'],
)
def test_levels(level_shapes):
    check(make_case(level_shapes))


@pytest.mark.parametrize('samples', [torch.float32, None], ids=['float32', 'same'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_types(dtype, samples):
    check(make_case([(5, 7), (3, 4)], dtype=dtype, samples_dtype=samples or dtype))


@pytest.mark.parametrize('head_dim', backend.HEAD_DIMS)
def test_head_dims(head_dim):
    check(make_case([(4, 3)], batch=1, queries=3, heads=1, head_dim=head_dim))


@pytest.mark.parametrize('points', [1, 3, 8])
def test_points(points):
    check(make_case([(4, 3), (2, 2)], batch=3, queries=2, heads=1, points=points))


def test_queries_of_several_programs():
    # 16 channels in vectors of 4: 32 queries a program.
    check(make_case([(4, 3)], batch=2, queries=67, heads=2, head_dim=16, points=1))


def test_non_contiguous_inputs():
    case = make_case([(4, 3), (2, 5)])
    scattered = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in case.leaves]
    points = case.reference_points.T.contiguous().T
    assert not any(x.is_contiguous() for x in (*scattered, points))
    check(Case(scattered[0], case.level_shapes, points, *scattered[1:]))


def test_slices_of_one_linear_are_not_copied():
    case = make_case([(4, 3), (2, 5)], queries=3)
    one = torch.cat([case.offsets.flatten(2), case.logits.flatten(2)], dim=-1)
    offsets, logits = one.split([case.offsets[0, 0].numel(), case.logits[0, 0].numel()], dim=-1)
    sliced = case._replace(
        offsets=offsets.unflatten(-1, case.offsets.shape[2:]),
        logits=logits.unflatten(-1, case.logits.shape[2:]),
    )
    check(sliced)
    from mmseg_m2f.ops.ms_deform_attn.triton_launch import _rows

    assert _rows(sliced.logits).data_ptr() == sliced.logits.data_ptr()


@pytest.mark.parametrize('far', [-1e9, -40.0, 40.0, 1e9])
def test_points_far_outside_contribute_nothing(far):
    case = make_case([(4, 4), (2, 2)], batch=1, queries=2, heads=1)
    out, grads = gradients(
        backend.ms_deform_attn_triton,
        case._replace(offsets=torch.full_like(case.offsets, far)),
        torch.ones(1, 2, 8, device=DEVICE),
    )
    assert not out.any()
    assert not any(grad.any() for grad in grads)


def test_large_logits_do_not_overflow():
    case = make_case([(4, 4), (2, 2)], batch=1, queries=2, heads=1)
    check(case._replace(logits=case.logits * 1000))


def test_what_lies_outside_the_map_is_not_read():
    # The upper left pixel of level 1 follows the lower right of level 0.
    case = make_case([(2, 2), (2, 2)], batch=1, queries=1, heads=1, points=1)
    value = case.value.index_fill(1, torch.arange(4, 8, device=DEVICE), torch.inf)
    logits = torch.tensor([0.0, -1e9], device=DEVICE).view(case.logits.shape)
    offsets = torch.tensor([[0.9, 0.9], [50.0, 50.0]], device=DEVICE).view(case.offsets.shape)
    corner = torch.ones(1, 2, device=DEVICE)
    out = backend.ms_deform_attn_triton(value, case.level_shapes, corner * 0.75, offsets, logits)
    torch.testing.assert_close(out[0, 0], 0.01 * value[0, 3, 0], rtol=1e-5, atol=0)


@pytest.mark.parametrize('op', [backend.forward_op, backend.backward_op], ids=['there', 'back'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_registration(op, dtype):
    case = make_case([(3, 2), (1, 2)], queries=2, dtype=dtype)
    leaves = [leaf.requires_grad_(op is backend.forward_op) for leaf in case.leaves]
    args = (leaves[0], [3, 2, 1, 2], case.reference_points, *leaves[1:])
    if op is backend.backward_op:
        args = (torch.randn(2, 2, 16).to(case.value), *args)
    torch.library.opcheck(op, args)


def test_compile_and_export_see_one_operator():
    case = make_case([(3, 2), (1, 2)], queries=2)

    def run(value, offsets, logits):
        points, shapes = case.reference_points, case.level_shapes
        return backend.ms_deform_attn_triton(value, shapes, points, offsets, logits) + 1

    leaves = [leaf.requires_grad_() for leaf in case.leaves]
    eager = run(*leaves)
    compiled = torch.compile(run, backend='aot_eager', fullgraph=True)(*leaves)
    assert torch.equal(compiled, eager)
    for got, expected in zip(
        torch.autograd.grad(compiled.sum(), leaves),
        torch.autograd.grad(eager.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)

    class Model(torch.nn.Module):
        def forward(self, *leaves):
            return run(*leaves)

    exported = torch.export.export(Model(), tuple(leaf.detach() for leaf in leaves))
    names = [str(node.target) for node in exported.graph.nodes if node.op == 'call_function']
    assert names[0].startswith('mmseg_m2f.ms_deform_attn_triton')
    assert len(names) == 2


def test_autocast_does_not_lower_the_precision():
    case = make_case([(3, 2)], queries=2)
    expected = backend.ms_deform_attn_triton(*case)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = backend.ms_deform_attn_triton(*case)
    assert torch.equal(got, expected)


@pytest.mark.skipif(IS_INTERPRETED, reason='nothing waits for the interpreter')
def test_the_host_never_waits():
    case = make_case([(4, 4), (3, 5)])
    grad_out = torch.ones(2, 5, 16, device=DEVICE)
    gradients(backend.ms_deform_attn_triton, case, grad_out)  # compiles, which may wait
    torch.cuda.set_sync_debug_mode('error')
    try:
        gradients(backend.ms_deform_attn_triton, case, grad_out)
    finally:
        torch.cuda.set_sync_debug_mode('default')
