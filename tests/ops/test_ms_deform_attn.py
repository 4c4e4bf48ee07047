import math

import pytest
import torch

from mmseg_m2f.ops import ms_deform_attn
from mmseg_m2f.ops.ms_deform_attn import BACKENDS, check_shapes, compiled
from mmseg_m2f.ops.ms_deform_attn.reference import ms_deform_attn_reference

CPU_BACKENDS = ['compiled', 'reference']


def make_inputs(
    level_shapes,
    *,
    batch=2,
    queries=3,
    heads=2,
    head_dim=4,
    points=2,
    spread=1.6,
    dtype=torch.float64,
):
    """Random inputs whose points lie up to ``(spread - 1) / 2`` outside the maps on each side."""
    tokens = sum(height * width for height, width in level_shapes)
    samples = (batch, queries, heads, len(level_shapes), points)
    value = torch.randn(batch, tokens, heads, head_dim, dtype=dtype)
    reference_points = torch.rand(queries, 2, dtype=dtype)
    wanted = (torch.rand(*samples, 2, dtype=dtype) - 0.5) * spread + 0.5
    offsets = (wanted - reference_points[:, None, None, None]) * extent(level_shapes, dtype)
    return value, level_shapes, reference_points, offsets, torch.randn(samples, dtype=dtype)


def extent(level_shapes, dtype):
    """Width and height of each level, to be multiplied with ``(..., L, P, 2)``."""
    return torch.tensor([[width, height] for height, width in level_shapes]).to(dtype)[:, None]


def naive(value, level_shapes, reference_points, offsets, logits):
    """Pixel by pixel: each sample is the weighted sum of the four pixels around it."""
    batch, _, heads, head_dim = value.shape
    _, queries, _, levels, points, _ = offsets.shape
    weights = logits.flatten(3).exp()
    weights = (weights / weights.sum(-1, keepdim=True)).view(logits.shape)
    out = torch.zeros(batch, queries, heads, head_dim, dtype=value.dtype)
    start = 0
    for level in range(levels):
        height, width = level_shapes[level]
        for b, q, h, p in torch.cartesian_prod(
            *(torch.arange(n) for n in (batch, queries, heads, points))
        ).tolist():
            x, y = offsets[b, q, h, level, p].tolist()
            x += reference_points[q, 0].item() * width - 0.5
            y += reference_points[q, 1].item() * height - 0.5
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        pixel = value[b, start + row * width + column, h]
                        out[b, q, h] += share * weights[b, q, h, level, p] * pixel
        start += height * width
    return out.flatten(2)


def outputs_and_gradients(inputs, backend):
    """The output, and the gradients of a weighted sum of it."""
    value, shapes, reference_points, offsets, logits = inputs
    leaves = [x.detach().clone().requires_grad_() for x in (value, offsets, logits)]
    out = ms_deform_attn(leaves[0], shapes, reference_points, *leaves[1:], backend=backend)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights.to(out.dtype))]


@pytest.mark.parametrize(
    'level_shapes',
    [[(4, 4)], [(3, 5), (7, 2)], [(1, 1), (5, 3), (9, 7)], [(1, 6), (6, 1)]],
    ids=['one', 'odd', 'three', 'thin'],
)
@pytest.mark.parametrize('backend', CPU_BACKENDS)
def test_cpu_back_ends_equal_the_naive_loop(level_shapes, backend):
    inputs = make_inputs(level_shapes)
    got = ms_deform_attn(*inputs, backend=backend)
    torch.testing.assert_close(got, naive(*inputs), rtol=1e-10, atol=1e-10)


def test_float32_of_any_layout_equals_the_reference():
    value, *rest = make_inputs([(9, 7), (3, 4)], dtype=torch.float32)
    args = (value.transpose(1, 2).contiguous().transpose(1, 2), *rest)
    got, reference = (ms_deform_attn(*args, backend=b) for b in ('compiled', 'reference'))
    # Sums of 16 products of numbers around one, in another order.
    torch.testing.assert_close(got, reference, rtol=0, atol=1e-5)


# Below, at and beside the widths that the compiled kernel takes at once.
@pytest.mark.parametrize('head_dim', [1, 8, 16, 31, 32, 40, 64])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_compiled_gradients_equal_those_of_the_reference(head_dim, dtype):
    check_gradients(head_dim, dtype)


def test_compiled_gradients_with_shorter_registers(shorter_registers):
    shorter_registers(compiled)
    for head_dim in (1, 8, 16, 31, 32, 40, 64):
        for dtype in (torch.float32, torch.float64):
            check_gradients(head_dim, dtype)


def check_gradients(head_dim, dtype):
    inputs = make_inputs(
        [(5, 3), (1, 1), (9, 7)], queries=19, heads=3, head_dim=head_dim, points=3, dtype=dtype
    )
    # Sums of up to 64 products in another order, beside locations rounded in another place.
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    names = ('output', 'value', 'offsets', 'logits')
    pair = (outputs_and_gradients(inputs, b) for b in ('compiled', 'reference'))
    for name, got, expected in zip(names, *pair, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, msg=name)


# Lists of samples are computed sixteen at a time, queries eight.
@pytest.mark.parametrize('points', [1, 4, 9])
@pytest.mark.parametrize('queries', [1, 8, 9])
def test_compiled_gradients_of_any_number_of_samples_and_queries(points, queries):
    inputs = make_inputs(
        [(5, 3), (1, 1), (9, 7), (2, 2)], batch=1, queries=queries, head_dim=24, points=points
    )
    pair = (outputs_and_gradients(inputs, b) for b in ('compiled', 'reference'))
    for got, expected in zip(*pair, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_compiled_gradients_of_bfloat16_are_computed_in_float32():
    value, shapes, reference_points, offsets, logits = make_inputs(
        [(5, 3), (9, 7)], queries=19, head_dim=40, dtype=torch.float32
    )
    half = [x.bfloat16() for x in (value, offsets, logits)]
    exact = (half[0].float(), shapes, reference_points, half[1].float(), half[2].float())
    got = outputs_and_gradients((half[0], shapes, reference_points, *half[1:]), 'compiled')
    for rounded, expected in zip(got, outputs_and_gradients(exact, 'compiled'), strict=True):
        assert rounded.dtype == torch.bfloat16
        # The incoming gradient depends on the rounded output.
        torch.testing.assert_close(
            rounded.float(), expected, rtol=0, atol=2**-7 * float(expected.abs().max())
        )


def test_compiled_results_do_not_hang_on_threads_or_runs():
    inputs = make_inputs([(9, 7), (20, 13)], queries=700, heads=4, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(inputs, 'compiled'))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_what_is_not_a_number_reaches_the_result_and_nothing_else():
    value, shapes, reference_points, offsets, logits = make_inputs([(4, 4)], dtype=torch.float32)
    logits[0, 0, 0] = math.nan
    offsets[0, 1, 1, 0, 0] = math.nan  # as far outside as can be: contributes nothing
    for result in outputs_and_gradients(
        (value, shapes, reference_points, offsets, logits), 'compiled'
    )[:1]:
        assert result[0, 0, :4].isnan().all()
        assert result[0, 0, 4:].isfinite().all()
        assert result[0, 1:].isfinite().all()
        assert result[1].isfinite().all()


def test_registered_operator():
    """Schema, gradients, shapes without data, and both under the compiler, by torch's own check."""
    value, shapes, *rest = make_inputs([(4, 4), (2, 3)], dtype=torch.float32)
    tensors = [value.requires_grad_(), rest[0], *(x.requires_grad_() for x in rest[1:])]
    sides = [side for shape in shapes for side in shape]
    operator = torch.ops.mmseg_m2f.ms_deform_attn_cpu
    results = torch.library.opcheck(operator, (tensors[0], sides, *tensors[1:]))
    assert set(results.values()) == {'SUCCESS'}


def test_the_compiled_kernel_says_what_it_is_not_for():
    value, shapes, reference_points, *rest = make_inputs([(4, 4)])
    with pytest.raises(ValueError, match='float32, float64 and bfloat16, got'):
        ms_deform_attn(value.half(), shapes, reference_points, *rest, backend='compiled')
    reference_points.requires_grad_()
    with pytest.raises(ValueError, match='no gradient for the reference points'):
        ms_deform_attn(value, shapes, reference_points, *rest, backend='compiled')


@pytest.mark.parametrize('backend', CPU_BACKENDS)
def test_by_hand(backend):
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)  # one 2 x 2 map
    centre, corner, outside, border = [0.5, 0.5], [0.25, 0.75], [1.5, 0.5], [0.0, 0.25]
    reference_points = torch.tensor([centre, corner, outside, border])
    offsets, logits = torch.zeros(1, 4, 1, 1, 1, 2), torch.zeros(1, 4, 1, 1, 1)
    args = (value, [(2, 2)], reference_points)
    out = ms_deform_attn(*args, offsets, logits, backend=backend)
    # The left border lies half a pixel from the first centre: half of it comes from outside, 0.
    assert out.flatten().tolist() == [2.5, 3.0, 0.0, 0.5]
    # Half a pixel to the right; and two samples of weights 1/4 and 3/4 at the first pixel, the
    # second of them moved to the last.
    moved = offsets + torch.tensor([0.5, 0.0])
    assert ms_deform_attn(*args, moved, logits, backend=backend).flatten().tolist() == [
        3.0,
        3.5,
        0.0,
        1.0,
    ]
    pair = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]).view(1, 1, 1, 1, 2, 2)
    logits = torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 1, 2)
    first = torch.tensor([[0.25, 0.25]])
    out = ms_deform_attn(value, [(2, 2)], first, pair, logits, backend=backend)
    torch.testing.assert_close(out.flatten(), torch.tensor([1 / 4 + 3 / 4 * 4]))


@pytest.mark.parametrize('backend', CPU_BACKENDS)
def test_points_far_outside_contribute_nothing(backend):
    value, shapes, reference_points, offsets, logits = make_inputs([(4, 4), (2, 2)])
    for far in (-12.0, 16.0, 1e6, -1e30, 1e30, math.inf):
        args = (value, shapes, reference_points, torch.full_like(offsets, far), logits)
        if math.isinf(far) and backend != 'compiled':
            continue  # grid_sample's result for a location at infinity is not defined
        assert not ms_deform_attn(*args, backend=backend).any()


def test_heads_lie_side_by_side_in_the_output():
    value, shapes, reference_points, *rest = make_inputs([(4, 3)], heads=3, head_dim=2)
    every = ms_deform_attn(value, shapes, reference_points, *rest)
    for head in range(3):
        one, *others = (x[:, :, head : head + 1] for x in (value, *rest))
        alone = ms_deform_attn(one, shapes, reference_points, *others)
        torch.testing.assert_close(every[..., 2 * head : 2 * head + 2], alone)


@pytest.mark.parametrize('backend', ['compiled', 'reference'])
def test_gradients(backend):
    value, shapes, reference_points, *rest = make_inputs([(3, 4), (2, 1)], batch=1, queries=2)
    leaves = [x.requires_grad_() for x in (value, *rest)]
    assert torch.autograd.gradcheck(
        lambda v, *others: ms_deform_attn(v, shapes, reference_points, *others, backend=backend),
        leaves,
    )


@pytest.mark.parametrize(
    ('backend', 'dtype', 'epsilon'),
    [
        ('compiled', torch.bfloat16, 2**-8),
        ('reference', torch.bfloat16, 2**-8),
        ('reference', torch.float16, 2**-11),
    ],
    ids=str,
)
def test_half_types_lose_no_more_than_the_final_rounding(backend, dtype, epsilon):
    """Sampling and summing run in float32, so the only loss is that of rounding the result:
    relative ``epsilon``, half a unit in the last place."""
    value, shapes, reference_points, offsets, logits = make_inputs(
        [(5, 7), (3, 4)], head_dim=24, dtype=torch.float32
    )
    value, logits = value.to(dtype), logits.to(dtype)
    args = (value, shapes, reference_points, offsets, logits)
    got = ms_deform_attn(*args, backend=backend)
    assert got.dtype == dtype
    exact = naive(value.double(), shapes, *(x.double() for x in args[2:]))
    torch.testing.assert_close(got.double(), exact, rtol=epsilon, atol=1e-5)


@pytest.mark.parametrize('backend', CPU_BACKENDS)
def test_non_contiguous_inputs(backend):
    value, shapes, *rest = make_inputs([(5, 7), (3, 4)])
    scattered = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in (value, *rest)]
    assert not any(x.is_contiguous() for x in scattered)
    got = ms_deform_attn(scattered[0], shapes, *scattered[1:], backend=backend)
    torch.testing.assert_close(got, ms_deform_attn(value, shapes, *rest, backend=backend))


@pytest.mark.parametrize('backend', ['compiled', 'reference'])
def test_zero_queries_give_an_empty_result_with_a_graph(backend):
    value, *rest = make_inputs([(5, 7), (3, 4)], queries=0)
    value.requires_grad_()
    out = ms_deform_attn(value, *rest, backend=backend)
    assert out.shape == (2, 0, 8)
    out.sum().backward()
    assert not value.grad.any()


def test_autocast_does_not_lower_the_precision():
    inputs = make_inputs([(5, 7), (3, 4)], dtype=torch.float32)
    for backend in CPU_BACKENDS:
        expected = ms_deform_attn(*inputs, backend=backend)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            got = ms_deform_attn(*inputs, backend=backend)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected)


def test_level_shapes_must_hold_all_tokens():
    value, _, *rest = make_inputs([(5, 7), (3, 4)])
    with pytest.raises(ValueError, match=r'\[\(5, 7\), \(4, 4\)\] hold 51 tokens, value has 47'):
        ms_deform_attn(value, [(5, 7), (4, 4)], *rest)


def test_level_shapes_must_name_every_sampled_level():
    value, _, *rest = make_inputs([(5, 7), (3, 4)])
    with pytest.raises(ValueError, match='has 1 levels, offsets 2'):
        ms_deform_attn(value, [(1, 47)], *rest)


def test_an_unknown_back_end_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown back end 'abacus'; known: 'auto',.*'reference'"):
        ms_deform_attn(*make_inputs([(2, 2)]), backend='abacus')


def test_the_reference_never_objects():
    assert BACKENDS.names[-1] == 'reference'
    assert BACKENDS.choose('reference', None).function is ms_deform_attn_reference


@pytest.mark.parametrize('which', [1, 2, 3])
def test_shapes_that_do_not_fit_are_refused_before_a_kernel_reads_them(which):
    value, shapes, *rest = make_inputs([(5, 7), (3, 4)])
    rest[which - 1] = rest[which - 1][:-1]
    with pytest.raises(ValueError, match=r'do not fit together, got \(2, 47, 2, 4\)'):
        check_shapes(value, shapes, *rest)  # the function before the tests' own check of shapes
