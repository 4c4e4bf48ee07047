import math

import pytest
import torch
from torch import nn

from mmseg_m2f.core.deform_attn import MSDeformAttn, pixel_centers
from tests.core.test_layers import assert_uniform

CPU = torch.device('cpu')
SHAPES = [(2, 3), (4, 5)]
NUM_TOKENS = 6 + 20
TAN_60 = math.tan(math.pi / 3)


def test_pixel_centers_by_hand():
    centers = pixel_centers([(1, 1), (2, 4)], device=CPU, dtype=torch.float64)
    assert centers.tolist() == [
        [0.5, 0.5],
        [0.125, 0.25], [0.375, 0.25], [0.625, 0.25], [0.875, 0.25],
        [0.125, 0.75], [0.375, 0.75], [0.625, 0.75], [0.875, 0.75],
    ]  # fmt: skip


@pytest.mark.parametrize(
    'directions',
    [
        # Eight directions of the compass, or three, counted from +x towards +y.
        [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)],
        [(1, 0), (-1 / TAN_60, 1), (-1 / TAN_60, -1)],
    ],
    ids=len,
)
def test_offsets_start_on_a_square_around_the_query(directions):
    heads = len(directions)
    attention = MSDeformAttn(4 * heads, num_heads=heads, num_levels=3, num_points=4)
    bias = attention.sampling_offsets.bias.view(heads, 3, 4, 2).detach()
    steps = torch.arange(1.0, 5)[:, None]  # point by point a pixel farther
    expected = (torch.tensor(directions)[:, None, None] * steps).expand(-1, 3, -1, -1)
    torch.testing.assert_close(bias, expected, rtol=0, atol=1e-5)


def test_weights_start_as_in_the_official_code():
    attention = MSDeformAttn(64)
    for linear in (attention.sampling_offsets, attention.attention_weights):
        assert not linear.weight.any()
    assert not attention.attention_weights.bias.any()
    for linear in (attention.value_proj, attention.output_proj):
        assert_uniform(linear.weight, math.sqrt(6 / 128))
        assert not linear.bias.any()


def naive(attention, query, value, reference_points, shapes):
    """Every sample of every query by itself."""
    heads, levels, points = attention.num_heads, attention.num_levels, attention.num_points
    batch, num_queries, channels = query.shape
    offsets = attention.sampling_offsets(query).view(batch, num_queries, heads, levels, points, 2)
    weights = attention.attention_weights(query).view(batch, num_queries, heads, -1).softmax(-1)
    weights = weights.view(batch, num_queries, heads, levels, points)
    projected = attention.value_proj(value).view(batch, -1, heads, channels // heads)
    out = torch.zeros(batch, num_queries, heads, channels // heads, dtype=query.dtype)
    starts = [0, shapes[0][0] * shapes[0][1]]
    for b, q, h, level, p in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, num_queries, heads, levels, points))
    ).tolist():
        height, width = shapes[level]
        # An offset of 1 is one pixel of its level; pixel centers lie at half-integers.
        x = reference_points[q, 0] * width + offsets[b, q, h, level, p, 0] - 0.5
        y = reference_points[q, 1] * height + offsets[b, q, h, level, p, 1] - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, h, level, p]
                    token = starts[level] + row * width + column
                    out[b, q, h] += share * projected[b, token, h]
    return attention.output_proj(out.flatten(2))


@torch.no_grad()
def test_attention_equals_the_naive_loop():
    attention = MSDeformAttn(8, num_heads=2, num_levels=2, num_points=2).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.7)
    query, value = torch.randn(2, 2, NUM_TOKENS, 8, dtype=torch.float64)
    centers = pixel_centers(SHAPES, device=CPU, dtype=torch.float64)
    got = attention(query, value, centers, SHAPES)
    expected = naive(attention, query, value, centers, SHAPES)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_an_unknown_back_end_is_refused():
    with pytest.raises(ValueError, match="unknown back end 'abacus'"):
        MSDeformAttn(8, num_heads=2, num_levels=2, num_points=2, backend='abacus')
