"""3 x 3 convolution, stride 1, padding 1, by Winograd's algorithm: ``winograd.cpp``.

It needs a quarter of the multiplications of the sum itself (arXiv:1509.09308), with errors about
four times as large. cuDNN chooses the same algorithm on GPUs.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad as exact

from mmseg_m2f.ops.native import Library

LIBRARY = Library('winograd', __file__)

# Without Winograd's algorithm a training step of the R50 model took 1.10 times as long (Zen 5 with
# AVX-512; with AVX2 code 1.31), an image 1.06 to 1.08.
# Below so many multiplications of the sum the transforms cost what the products save.
FEWEST_MULTIPLICATIONS = 10**8


def suits(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Return True if ``convolve_3x3`` is the faster way for this module on ``x (B, C, h, w)``."""
    out_channels, in_channels = convolution.out_channels, convolution.in_channels
    form = (
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
    )
    if form != ((3, 3), (1, 1), (1, 1), (1, 1)):
        return False
    if x.numel() * out_channels * 9 < FEWEST_MULTIPLICATIONS or LIBRARY.why_not() is not None:
        return False
    lanes = LIBRARY.loaded().lanes()
    return in_channels % lanes == 0 and out_channels % lanes == 0


def convolve_3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the convolution, differentiable.

    Args:
        x: float32 ``(B, C, h, w)`` in channels-last order.
        weight: float32 ``(K, C, 3, 3)``; ``C`` and ``K`` are multiples of the library's ``lanes``.
        bias: float32 ``(K,)``.

    Returns:
        ``(B, K, h, w)`` in channels-last order. The same bits on any number of threads.
    """
    result: Tensor = _Convolve.apply(x, weight, bias)
    return result


class _Convolve(torch.autograd.Function):
    """The convolution with its gradients; the second derivative is PyTorch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _forward(x, weight.data_ptr(), weight.stride(), weight.shape[0], bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        # With create_graph the gradients are to be differentiable themselves.
        differentiable = torch.is_grad_enabled()
        if needs_x and differentiable:
            grad_x = exact.conv2d_input(x.shape, weight, grad, padding=1)
        elif needs_x:
            grad_x = _backward_input(grad, weight)
        if needs_weight and differentiable:
            grad_weight = exact.conv2d_weight(x, weight.shape, grad, padding=1)
        elif needs_weight:
            grad_weight = _backward_weight(x, grad)
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None


def _backward_input(grad: Tensor, weight: Tensor) -> Tensor:
    """Convolve with the weights turned around and their two kinds of channels exchanged."""
    out_stride, in_stride, row, column = weight.stride()
    last = weight.data_ptr() + weight.element_size() * 2 * (row + column)
    return _forward(grad, last, (in_stride, out_stride, -row, -column), weight.shape[1], None)


def _backward_weight(x: Tensor, grad: Tensor) -> Tensor:
    out = x.new_empty(grad.shape[1], x.shape[1], 3, 3)
    library, sizes = LIBRARY.loaded(), _sizes(x, grad.shape[1])
    workspace = _workspace(x, library.backward_weight_floats, sizes)
    library.backward_weight(
        sizes, _pointer(x), _pointer(grad), _pointer(out), _pointers(workspace), _num_threads()
    )
    return out


def _forward(
    x: Tensor, weight: int, strides: Sequence[int], channels: int, bias: Tensor | None
) -> Tensor:
    """Convolve with the weights at an address, which have these strides, in floats."""
    bias = None if bias is None else bias.contiguous()
    shape = (x.shape[0], channels, *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    library, sizes = LIBRARY.loaded(), _sizes(x, channels)
    workspace = _workspace(x, library.forward_floats, sizes)
    library.forward(
        sizes,
        _pointer(x),
        ctypes.c_void_p(weight),
        (ctypes.c_int64 * 4)(*strides),
        _pointer(bias),
        _pointer(out),
        _pointers(workspace),
        _num_threads(),
    )
    return out


def _workspace(
    like: Tensor, write_floats: Callable[..., None], sizes: ctypes.Array
) -> list[Tensor]:
    floats = (ctypes.c_int64 * 3)()
    write_floats(sizes, floats)
    return [like.new_empty(number) for number in floats]


def _sizes(x: Tensor, channels: int) -> ctypes.Array:
    batch, in_channels, height, width = x.shape
    return (ctypes.c_int64 * 5)(batch, height, width, in_channels, channels)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _pointers(tensors: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _num_threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())
