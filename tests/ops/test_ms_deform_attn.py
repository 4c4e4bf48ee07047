import math

import pytest
import torch

from mmseg_m2f.ops import ms_deform_attn
from mmseg_m2f.ops.ms_deform_attn import BACKENDS
from mmseg_m2f.ops.ms_deform_attn.reference import ms_deform_attn_reference


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
    levels = len(level_shapes)
    value = torch.randn(batch, tokens, heads, head_dim, dtype=dtype)
    unit = torch.rand(batch, queries, heads, levels, points, 2, dtype=dtype)
    weights = torch.rand(batch, queries, heads, levels, points, dtype=dtype)
    return value, level_shapes, (unit - 0.5) * spread + 0.5, weights


def naive(value, level_shapes, locations, weights):
    """Pixel by pixel: each sample is the weighted sum of the four pixels around it."""
    batch, _, heads, head_dim = value.shape
    _, queries, _, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, head_dim, dtype=value.dtype)
    start = 0
    for level in range(levels):
        height, width = level_shapes[level]
        for b, q, h, p in torch.cartesian_prod(
            *(torch.arange(n) for n in (batch, queries, heads, points))
        ).tolist():
            x, y = locations[b, q, h, level, p].tolist()
            x, y = x * width - 0.5, y * height - 0.5
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        pixel = value[b, start + row * width + column, h]
                        out[b, q, h] += share * weights[b, q, h, level, p] * pixel
        start += height * width
    return out.flatten(2)


@pytest.mark.parametrize(
    'level_shapes',
    [[(4, 4)], [(3, 5), (7, 2)], [(1, 1), (5, 3), (9, 7)], [(1, 6), (6, 1)]],
    ids=['one', 'odd', 'three', 'thin'],
)
@pytest.mark.parametrize('backend', ['reference', 'embedding_bag'])
def test_cpu_back_ends_equal_the_naive_loop(level_shapes, backend):
    inputs = make_inputs(level_shapes)
    got = ms_deform_attn(*inputs, backend=backend)
    torch.testing.assert_close(got, naive(*inputs), rtol=1e-10, atol=1e-10)


def test_embedding_bag_equals_the_reference_in_float32_and_takes_any_layout():
    value, shapes, locations, weights = make_inputs([(9, 7), (3, 4)], dtype=torch.float32)
    value = value.transpose(1, 2).contiguous().transpose(1, 2)
    args = (value, shapes, locations, weights)
    got, reference = (ms_deform_attn(*args, backend=b) for b in ('embedding_bag', 'reference'))
    # Sums of 16 products of numbers around one, in another order.
    torch.testing.assert_close(got, reference, rtol=0, atol=1e-5)
    no_queries = (value, shapes, locations[:, :0], weights[:, :0])
    assert ms_deform_attn(*no_queries, backend='embedding_bag').shape == (2, 0, 8)


def test_embedding_bag_says_what_it_is_not_for():
    value, shapes, locations, weights = make_inputs([(4, 4)])
    with pytest.raises(ValueError, match='for inference, and a gradient is asked for'):
        ms_deform_attn(value.requires_grad_(), shapes, locations, weights, backend='embedding_bag')
    with torch.no_grad():
        ms_deform_attn(value, shapes, locations, weights, backend='embedding_bag')
    with pytest.raises(ValueError, match='float32 or float64 throughout'):
        ms_deform_attn(value.detach().half(), shapes, locations, weights, backend='embedding_bag')


def test_by_hand():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)  # one 2 x 2 map
    centre, corner, outside, border = [0.5, 0.5], [0.25, 0.75], [1.5, 0.5], [0.0, 0.25]
    locations = torch.tensor([centre, corner, outside, border]).view(1, 4, 1, 1, 1, 2)
    out = ms_deform_attn(value, [(2, 2)], locations, torch.ones(1, 4, 1, 1, 1))
    # The left border lies half a pixel from the first centre: half of it comes from outside, 0.
    assert out.flatten().tolist() == [2.5, 3.0, 0.0, 0.5]


def test_points_far_outside_contribute_nothing():
    value, shapes, locations, weights = make_inputs([(4, 4), (2, 2)])
    for far in (-3.0, 4.0, 1e6):
        out = ms_deform_attn(value, shapes, torch.full_like(locations, far), weights)
        assert not out.any()


def test_heads_lie_side_by_side_in_the_output():
    value, shapes, locations, weights = make_inputs([(4, 3)], heads=3, head_dim=2)
    every = ms_deform_attn(value, shapes, locations, weights)
    for head in range(3):
        one = slice(head, head + 1)
        alone = ms_deform_attn(value[:, :, one], shapes, locations[:, :, one], weights[:, :, one])
        torch.testing.assert_close(every[..., 2 * head : 2 * head + 2], alone)


def test_gradients():
    value, shapes, locations, weights = make_inputs([(3, 4), (2, 1)], batch=1, queries=2)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, shapes, x, w, backend='reference'), leaves
    )


@pytest.mark.parametrize(
    ('dtype', 'epsilon'), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str
)
def test_half_types_lose_no_more_than_the_final_rounding(dtype, epsilon):
    """Sampling and summing run in float32, so the only loss is that of rounding the result:
    relative ``epsilon``, half a unit in the last place."""
    value, shapes, locations, weights = make_inputs([(5, 7), (3, 4)], dtype=torch.float32)
    value, weights = value.to(dtype), weights.to(dtype)
    got = ms_deform_attn(value, shapes, locations, weights)
    assert got.dtype == dtype
    exact = naive(value.double(), shapes, locations.double(), weights.double())
    torch.testing.assert_close(got.double(), exact, rtol=epsilon, atol=1e-5)


def test_non_contiguous_inputs():
    value, shapes, locations, weights = make_inputs([(5, 7), (3, 4)])
    scattered = [
        x.transpose(0, -1).contiguous().transpose(0, -1) for x in (value, locations, weights)
    ]
    assert not any(x.is_contiguous() for x in scattered)
    got = ms_deform_attn(scattered[0], shapes, *scattered[1:])
    torch.testing.assert_close(got, ms_deform_attn(value, shapes, locations, weights))


def test_zero_queries_give_an_empty_result_with_a_graph():
    value, shapes, locations, weights = make_inputs([(5, 7), (3, 4)], queries=0)
    value.requires_grad_()
    out = ms_deform_attn(value, shapes, locations, weights)
    assert out.shape == (2, 0, 8)
    out.sum().backward()
    assert not value.grad.any()


def test_autocast_does_not_lower_the_precision():
    inputs = make_inputs([(5, 7), (3, 4)], dtype=torch.float32)
    expected = ms_deform_attn(*inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = ms_deform_attn(*inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


def test_level_shapes_must_hold_all_tokens():
    value, _, locations, weights = make_inputs([(5, 7), (3, 4)])
    with pytest.raises(ValueError, match=r'\[\(5, 7\), \(4, 4\)\] hold 51 tokens, value has 47'):
        ms_deform_attn(value, [(5, 7), (4, 4)], locations, weights)


def test_level_shapes_must_name_every_sampled_level():
    value, _, locations, weights = make_inputs([(5, 7), (3, 4)])
    with pytest.raises(ValueError, match='has 1 levels, sampling_locations 2'):
        ms_deform_attn(value, [(1, 47)], locations, weights)


def test_an_unknown_back_end_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown back end 'abacus'; known: 'auto',.*'reference'"):
        ms_deform_attn(*make_inputs([(2, 2)]), backend='abacus')


def test_the_reference_never_objects():
    assert BACKENDS.names[-1] == 'reference'
    assert BACKENDS.choose('reference', None).function is ms_deform_attn_reference
