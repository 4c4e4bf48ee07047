import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmseg_m2f.core.deform_attn import MSDeformAttn
from mmseg_m2f.core.layers import (
    Attention,
    ConvNorm,
    FeedForward,
    init_xavier_normal,
    resize_bilinear,
    sine_encoding,
)

CPU = torch.device('cpu')


def slow_sine_encoding(height, width, channels):
    """Number by number, from the formula."""
    half = channels // 2
    out = torch.zeros(channels, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            for i in range(half):
                wave = 10000 ** (2 * (i // 2) / half)
                function = math.sin if i % 2 == 0 else math.cos
                y = (row + 1) / (height + 1e-6) * 2 * math.pi
                x = (column + 1) / (width + 1e-6) * 2 * math.pi
                out[i, row, column] = function(y / wave)
                out[half + i, row, column] = function(x / wave)
    return out


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (7, 2)])
@pytest.mark.parametrize('channels', [4, 12, 32])
def test_sine_encoding_equals_the_slow_loop(size, channels):
    got = sine_encoding(size, channels, device=CPU, dtype=torch.float64)
    torch.testing.assert_close(got, slow_sine_encoding(*size, channels), rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sine_encoding_of_half_types_is_rounded_only_at_the_end(dtype):
    exact = sine_encoding((37, 53), 64, device=CPU, dtype=torch.float32)
    assert torch.equal(sine_encoding((37, 53), 64, device=CPU, dtype=dtype), exact.to(dtype))


@pytest.mark.parametrize('masked', [False, True])
def test_attention_equals_multihead_attention_with_the_mask_inverted(masked):
    ours = Attention(32, 4).double()
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    query, key, value = (torch.randn(2, n, 32, dtype=torch.float64) for n in (5, 9, 9))
    may_attend = blocked = None
    if masked:
        may_attend = torch.rand(2, 1, 5, 9) < 0.5
        may_attend[..., 0] = True  # PyTorch gives NaN for a row that may attend nowhere
        blocked = ~may_attend.expand(-1, 4, -1, -1).flatten(0, 1)
    expected, _ = theirs(query, key, value, attn_mask=blocked, need_weights=False)
    got = ours(query, key, value, may_attend)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def assert_uniform(weight, bound):
    """The law is uniform on [-bound, bound]: the extremes and the fourth moment tell it from a
    normal law (kurtosis 3) and from another bound."""
    weight = weight.detach().double()
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert ((weight / weight.std()) ** 4).mean() == pytest.approx(1.8, rel=0.05)


def test_attention_and_feed_forward_start_xavier_uniform():
    attention, ffn = Attention(64, 4), FeedForward(64, 192)
    # Query, key and value are one matrix: its fan-out counts.
    assert_uniform(attention.in_proj_weight, math.sqrt(6 / (64 + 3 * 64)))
    assert_uniform(attention.out_proj.weight, math.sqrt(6 / (64 + 64)))
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()
    for linear, fan_in in ((ffn.linear1, 64), (ffn.linear2, 192)):
        assert_uniform(linear.weight, math.sqrt(6 / (64 + 192)))
        assert linear.bias.any()  # PyTorch's default
        assert linear.bias.abs().max() <= 1 / math.sqrt(fan_in)


def test_xavier_normal_changes_the_law_of_the_matrices_and_nothing_else():
    parts = {'a': Attention(64, 4), 'f': FeedForward(64, 128), 'd': MSDeformAttn(32, 4)}
    model = nn.ModuleDict({**parts, 'c': nn.Conv2d(64, 64, 1), 'n': nn.Linear(64, 8)})
    before = {name: value.clone() for name, value in model.named_parameters()}
    init_xavier_normal(model)
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    matrices = {'a.in_proj_weight': 4 * 64, 'a.out_proj.weight': 2 * 64}
    matrices |= {'f.linear1.weight': 192, 'f.linear2.weight': 192}
    assert changed == set(matrices)
    for name, fans in matrices.items():
        value, bound = model.get_parameter(name), math.sqrt(6 / fans)
        assert before[name].abs().max() <= bound < value.abs().max()
        assert value.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.05)
        # The fourth moment of a normal law is 3 variances squared, that of a uniform one 1.8.
        assert (value**4).mean().item() == pytest.approx(3 * (2 / fans) ** 2, rel=0.15)


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('activate', [False, True])
def test_conv_norm_is_convolution_then_group_norm_then_relu(kernel_size, activate):
    block = ConvNorm(3, 8, kernel_size, norm_groups=2, activate=activate).double()
    nn.init.normal_(block.norm.weight)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    raw = F.conv2d(x, block.conv.weight, padding=kernel_size // 2).view(2, 2, -1)
    normal = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, False, keepdim=True) + 1e-5).sqrt()
    expected = normal.view(2, 8, 5, 7) * block.norm.weight[:, None, None]
    torch.testing.assert_close(block(x), expected.relu() if activate else expected)


def test_resize_bilinear_interpolates_between_pixel_centers():
    # Twice as wide: new centers lie a quarter and three quarters between the old ones.
    maps = torch.tensor([[[[0.0, 4.0]]]])
    assert resize_bilinear(maps, (1, 4)).tolist() == [[[[0.0, 1.0, 3.0, 4.0]]]]
