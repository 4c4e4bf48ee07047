"""The back ends of deformable attention for a CPU."""

import math
from functools import partial

import pytest
import torch

from mmseg_m2f.ops import ms_deform_attn
from mmseg_m2f.ops.ms_deform_attn import compiled
from tests.ops.attention_cases import check, make_case, scattered, with_gradients

THREE = [(5, 3), (1, 1), (9, 7)]


@pytest.fixture(params=['compiled', 'reference'])
def backend(request):
    return partial(ms_deform_attn, backend=request.param)


run_compiled = partial(ms_deform_attn, backend='compiled')


def test_by_hand(backend):
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)  # one 2 x 2 map
    center, corner, outside, border = [0.5, 0.5], [0.25, 0.75], [1.5, 0.5], [0.0, 0.25]
    args = (value, [(2, 2)], torch.tensor([center, corner, outside, border]))
    offsets, logits = torch.zeros(1, 4, 1, 1, 1, 2), torch.zeros(1, 4, 1, 1, 1)
    # The left border lies half a pixel from the first center: half of it comes from outside, 0.
    assert backend(*args, offsets, logits).flatten().tolist() == [2.5, 3.0, 0.0, 0.5]
    to_the_right = offsets + torch.tensor([0.5, 0.0])
    assert backend(*args, to_the_right, logits).flatten().tolist() == [3.0, 3.5, 0.0, 1.0]
    # Two samples of weights 1/4 and 3/4: at the first pixel and, moved by (1, 1), at the last.
    pair = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).view(1, 1, 1, 1, 2, 2)
    logits = torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 1, 2)
    out = backend(value, [(2, 2)], torch.tensor([[0.25, 0.25]]), pair, logits)
    torch.testing.assert_close(out.flatten(), torch.tensor([1 / 4 + 3 / 4 * 4]))


@pytest.mark.parametrize('level_shapes', [[(4, 4)], [(3, 5), (7, 2)], THREE, [(1, 6), (6, 1)]])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_results_and_gradients(backend, level_shapes, dtype):
    case = make_case(level_shapes, dtype=dtype)
    check(backend, case)
    check(backend, scattered(case))


# Below, at and beside the widths that the compiled kernel takes at once.
HEAD_DIMS = [1, 8, 16, 31, 32, 40, 64]


def check_head_dims():
    for head_dim in HEAD_DIMS:
        for dtype in (torch.float32, torch.float64):
            case = make_case(THREE, queries=19, heads=3, head_dim=head_dim, points=3, dtype=dtype)
            check(run_compiled, case)


def test_compiled_results_of_any_number_of_channels():
    check_head_dims()


def test_compiled_results_with_shorter_registers(shorter_registers):
    shorter_registers(compiled)
    check_head_dims()


# Lists of samples are computed sixteen at a time, queries eight.
@pytest.mark.parametrize('points', [1, 4, 9])
@pytest.mark.parametrize('queries', [1, 8, 9])
def test_compiled_results_of_any_number_of_samples_and_queries(points, queries):
    check(run_compiled, make_case([*THREE, (2, 2)], batch=1, queries=queries, points=points))


@pytest.mark.parametrize('samples', [torch.float32, None], ids=['float32', 'same'])
def test_compiled_bfloat16_is_computed_in_float32(samples):
    case = make_case(THREE, head_dim=40, dtype=torch.bfloat16, samples_dtype=samples)
    check(run_compiled, case)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_the_reference_samples_half_types_in_float32(dtype):
    case = make_case(THREE, dtype=dtype)
    got = ms_deform_attn(*case, backend='reference')
    exact = ms_deform_attn(*(x.double() if isinstance(x, torch.Tensor) else x for x in case))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(dtype).eps / 2, atol=5e-5)


def test_compiled_results_do_not_depend_on_threads_or_runs():
    case, results = make_case([(9, 7), (20, 13)], queries=700, heads=4), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            results.append(with_gradients(run_compiled, case, torch.ones(2, 700, 32)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_nan_reaches_its_own_result_only():
    case = make_case([(4, 4)], head_dim=4)
    case.logits[0, 0, 0] = math.nan
    case.offsets[0, 1, 1, 0, 0] = math.nan  # as far outside as can be: contributes nothing
    result = run_compiled(*case)
    assert result[0, 0, :4].isnan().all()
    result[0, 0, :4] = 0
    assert result.isfinite().all()


@pytest.mark.parametrize('far', [-12.0, 16.0, 1e6, -1e30, 1e30])
def test_points_far_outside_contribute_nothing(backend, far):
    case = make_case([(4, 4), (2, 2)])
    assert not backend(*case._replace(offsets=torch.full_like(case.offsets, far))).any()


def test_zero_queries_give_an_empty_result_with_a_graph(backend):
    case = make_case([(5, 7), (3, 4)], queries=0)
    out = backend(*case._replace(value=case.value.requires_grad_()))
    assert out.shape == (2, 0, 16)
    out.sum().backward()
    assert not case.value.grad.any()


def test_autocast_does_not_lower_the_precision(backend):
    case = make_case([(5, 7), (3, 4)])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        check(backend, case)


def test_registered_operator():
    """Schema, gradients, shapes without data, and both under the compiler, by torch's own check."""
    case = make_case([(4, 4), (2, 3)])
    value, offsets, logits = (leaf.requires_grad_() for leaf in case.leaves)
    arguments = (value, [4, 4, 2, 3], case.reference_points, offsets, logits)
    results = torch.library.opcheck(torch.ops.mmseg_m2f.ms_deform_attn_cpu, arguments)
    assert set(results.values()) == {'SUCCESS'}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: {'value': c.value.half()}, 'float32, float64 and bfloat16, got'),
        (
            lambda c: {'reference_points': c.reference_points.clone().requires_grad_()},
            'no gradient for the reference points',
        ),
        (
            lambda c: {'level_shapes': [(5, 7), (4, 4)]},
            r'\[\(5, 7\), \(4, 4\)\] hold 51 tokens, value has 47',
        ),
        (lambda c: {'level_shapes': [(1, 47)]}, 'has 1 levels, offsets 2'),
        (lambda c: {'reference_points': c.reference_points[:-1]}, 'do not fit together'),
        (lambda c: {'offsets': c.offsets[:-1]}, 'do not fit together'),
        (lambda c: {'logits': c.logits[:-1]}, r'do not fit together, got \(2, 47, 2, 8\)'),
    ],
)
def test_refusals(change, message):
    case = make_case([(5, 7), (3, 4)])
    arguments = case._replace(**change(case))
    # The function below the tests' own check of shapes.
    function = getattr(run_compiled.func, '__wrapped__', run_compiled.func)
    with pytest.raises(ValueError, match=message):
        function(*arguments, backend='compiled')
