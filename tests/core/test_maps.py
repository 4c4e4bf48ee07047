"""Convolution, norm and the passing on of maps, against their definitions."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmseg_m2f.core.maps import ConvNorm, in_order_of, pass_on, resize_maps


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('activate', [False, True])
def test_conv_norm_is_convolution_then_group_norm_then_relu(kernel_size, activate):
    block = ConvNorm(3, 8, kernel_size, norm_groups=2, activate=activate)
    nn.init.normal_(block.norm.weight)
    x = torch.randn(2, 3, 5, 7)
    raw = F.conv2d(x, block.conv.weight, padding=kernel_size // 2).view(2, 2, -1)
    normal = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, False, keepdim=True) + 1e-5).sqrt()
    expected = normal.view(2, 8, 5, 7) * block.norm.weight[:, None, None]
    torch.testing.assert_close(block(x), expected.relu() if activate else expected)


def test_conv_norm_has_a_bias_only_on_request():
    assert ConvNorm(3, 8, norm_groups=2).conv.bias is None
    assert ConvNorm(3, 8, norm_groups=2, bias=True).conv.bias is not None


def lives_until_the_norm(block):
    """Whether a map that is passed on is still there when the block's norm starts."""
    maps, seen = [torch.ones(1, 3, 5, 7)], []
    alive = weakref.ref(maps[0])
    hook = block.norm.register_forward_pre_hook(lambda *_: seen.append(alive() is not None))
    pass_on(maps, block)
    hook.remove()
    assert maps == []
    return seen[0]


def test_a_map_that_is_passed_on_lives_until_the_convolution_has_read_it():
    block = ConvNorm(3, 8, norm_groups=2)
    with torch.no_grad():
        assert not lives_until_the_norm(block)
    assert lives_until_the_norm(block)


@torch.no_grad()
def test_what_is_passed_on_is_a_map_where_somebody_could_see_it():
    x, block = torch.randn(1, 3, 5, 7), ConvNorm(3, 8, norm_groups=2)
    assert torch.equal(pass_on([x], block), block(x))
    assert torch.equal(pass_on([x], nn.Identity()), x)
    seen = []
    block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pass_on([x], block)
    assert seen[0] is x


@pytest.mark.parametrize('order', [torch.contiguous_format, torch.channels_last])
def test_maps_are_resized_as_pytorch_does_in_their_own_order(order):
    maps = torch.randn(2, 6, 5, 7).contiguous(memory_format=order)
    resized = resize_maps(maps, (9, 4))
    expected = F.interpolate(maps.contiguous(), (9, 4), mode='bilinear', align_corners=False)
    torch.testing.assert_close(resized, expected)
    assert resized.is_contiguous(memory_format=order)


@pytest.mark.parametrize('order', [torch.contiguous_format, torch.channels_last])
def test_maps_take_the_order_of_others(order):
    maps = torch.randn(1, 20, 6).transpose(1, 2).unflatten(-1, (4, 5))  # a view of tokens
    other = torch.empty(1, 6, 8, 10).contiguous(memory_format=order)
    ordered = in_order_of(maps, other)
    assert torch.equal(ordered, maps)
    assert ordered.is_contiguous(memory_format=order)
