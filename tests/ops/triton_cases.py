"""Cases of ``test_ms_deform_attn_triton.py``, which runs them in a process of their own.

Triton reads TRITON_INTERPRET when it is imported: a process either interprets, on the CPU, or
compiles, for the GPU.
"""

import os

import pytest
import torch

from mmseg_m2f.ops.ms_deform_attn import triton as backend
from mmseg_m2f.ops.ms_deform_attn.triton_launch import _rows
from tests.ops import attention_cases
from tests.ops.attention_cases import ROUNDING, scattered, with_gradients

IS_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if IS_INTERPRETED else 'cuda'
run = backend.ms_deform_attn_triton


def make_case(level_shapes, **settings):
    return attention_cases.make_case(level_shapes, **settings, device=DEVICE)


def check(case):
    # The interpreter cuts bfloat16 off, which loses up to a whole unit in the last place.
    interpreted = {torch.bfloat16: 2**-7} if IS_INTERPRETED else {}
    attention_cases.check(run, case, ROUNDING | interpreted)


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
    check(make_case([(5, 7), (3, 4)], dtype=dtype, samples_dtype=samples))


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
    check(scattered(make_case([(4, 3), (2, 5)])))


def test_slices_of_one_linear_are_not_copied():
    case = make_case([(4, 3), (2, 5)], queries=3)
    one = torch.cat([case.offsets.flatten(2), case.logits.flatten(2)], dim=-1)
    offsets, logits = one.split([case.offsets[0, 0].numel(), case.logits[0, 0].numel()], dim=-1)
    sliced = case._replace(
        offsets=offsets.unflatten(-1, case.offsets.shape[2:]),
        logits=logits.unflatten(-1, case.logits.shape[2:]),
    )
    check(sliced)
    assert _rows(sliced.logits).data_ptr() == sliced.logits.data_ptr()


@pytest.mark.parametrize('far', [-1e9, -40.0, 40.0, 1e9])
def test_points_far_outside_contribute_nothing(far):
    case = make_case([(4, 4), (2, 2)], batch=1, queries=2, heads=1)
    case = case._replace(offsets=torch.full_like(case.offsets, far))
    assert not any(x.any() for x in with_gradients(run, case, torch.ones(1, 2, 8, device=DEVICE)))


def test_large_logits_do_not_overflow():
    case = make_case([(4, 4), (2, 2)], batch=1, queries=2, heads=1)
    check(case._replace(logits=case.logits * 300))


def test_what_lies_outside_the_map_is_not_read():
    # The upper left pixel of level 1 follows the lower right of level 0.
    case = make_case([(2, 2), (2, 2)], batch=1, queries=1, heads=1, points=1)
    value = case.value.index_fill(1, torch.arange(4, 8, device=DEVICE), torch.inf)
    logits = torch.tensor([0.0, -1e9], device=DEVICE).view(case.logits.shape)
    offsets = torch.tensor([[0.9, 0.9], [50.0, 50.0]], device=DEVICE).view(case.offsets.shape)
    corner = torch.full((1, 2), 0.75, device=DEVICE)
    out = run(value, case.level_shapes, corner, offsets, logits)
    torch.testing.assert_close(out[0, 0], 0.01 * value[0, 3, 0], rtol=1e-5, atol=0)


@pytest.mark.parametrize('op', [backend.forward_op, backend.backward_op], ids=['there', 'back'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_registration(op, dtype):
    case = make_case([(3, 2), (1, 2)], queries=2, dtype=dtype, samples_dtype=torch.float32)
    leaves = [leaf.requires_grad_(op is backend.forward_op) for leaf in case.leaves]
    args = (leaves[0], [3, 2, 1, 2], case.reference_points, *leaves[1:])
    if op is backend.backward_op:
        args = (torch.randn(2, 2, 16).to(case.value), *args)
    torch.library.opcheck(op, args)


def test_compile_and_export_see_one_operator():
    case = make_case([(3, 2), (1, 2)], queries=2)

    class Model(torch.nn.Module):
        def forward(self, *leaves):
            return run(*case.with_leaves(*leaves)) + 1

    compiled = torch.compile(Model(), backend='aot_eager', fullgraph=True)
    grad = torch.ones(2, 2, 16, device=DEVICE)
    models = [lambda *x: Model()(x[0], *x[3:]), lambda *x: compiled(x[0], *x[3:])]
    expected, found = (with_gradients(model, case, grad) for model in models)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found, expected)
    exported = torch.export.export(Model(), case.leaves)
    names = [str(node.target) for node in exported.graph.nodes if node.op == 'call_function']
    assert names[0].startswith('mmseg_m2f.ms_deform_attn_triton')
    assert len(names) == 2


def test_autocast_does_not_lower_the_precision():
    case = make_case([(3, 2)], queries=2)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = run(*case)
    assert torch.equal(got, run(*case))


@pytest.mark.skipif(IS_INTERPRETED, reason='nothing waits for the interpreter')
def test_the_host_never_waits():
    case, grad_out = make_case([(4, 4), (3, 5)]), torch.ones(2, 5, 16, device=DEVICE)
    with_gradients(run, case, grad_out)  # compiles, which may wait
    torch.cuda.set_sync_debug_mode('error')
    try:
        with_gradients(run, case, grad_out)
    finally:
        torch.cuda.set_sync_debug_mode('default')
