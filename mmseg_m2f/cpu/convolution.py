"""Convolutions in float32 in channels-last order, each by what computes it fastest on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.cpu import onednn, winograd


def is_plain(convolution: nn.Module) -> bool:
    """Return True if ``convolve`` can do what the module does."""
    return (
        type(convolution) is nn.Conv2d
        and convolution.groups == 1
        and convolution.padding_mode == 'zeros'
        and not isinstance(convolution.padding, str)
    )


def convolve(
    convolution: nn.Conv2d,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute ``relu(x * weight + bias + residual)``, differentiable, channels last.

    A 1 x 1 convolution is a product of oneDNN, a large 3 x 3 one runs by Winograd's algorithm. The
    sum and ReLU overwrite the convolution's result, which the backward pass does not need.

    Args:
        convolution: gives stride, padding and dilation; ``is_plain``.
        x: map ``(B, C, h, w)``.
        weight: ``(K, C, kernel, kernel)``, the module's own or a multiple of it.
        bias: ``(K,)``, in place of the module's own.
        relu: whether negative results become 0.
        residual: ``(B, K, h2, w2)``, added before ``relu``.
    """
    x = channels_last(x)
    stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
    if convolution.kernel_size == (1, 1) and padding == (0, 0):
        added = None if residual is None else _pixels(channels_last(residual))
        pixels = _pixels(x)[:, :: stride[0], :: stride[1]]
        y = onednn.linear(pixels, weight.flatten(1), bias, relu=relu, residual=added)
        return y.permute(0, 3, 1, 2)
    if winograd.suits(convolution, x):
        y = winograd.convolve_3x3(x, weight, bias)
    else:
        y = F.conv2d(x, weight, bias, stride, padding, dilation)
    if residual is not None:
        y = y.add_(residual)
    return y.relu_() if relu else y


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` in channels-last order: itself if it is so already."""
    return x.contiguous(memory_format=torch.channels_last)


def _pixels(x: Tensor) -> Tensor:
    """View a map as rows of channels ``(B, h, w, C)``."""
    return x.permute(0, 2, 3, 1)
