"""3 x 3 convolution, stride 1, padding 1, on the CPU by Winograd's algorithm: ``winograd.cpp``.

A quarter of the multiplications of the sum itself (arXiv:1509.09308), at errors some four times as
large. On GPUs cuDNN chooses the same algorithm.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from mmseg_m2f.ops.native import Library

LIBRARY = Library('winograd', __file__)

# Multiplications of the sum below which the transforms cost what the products save.
FEWEST_MULTIPLICATIONS = 10**8


def why_not(x: Tensor, weight: Tensor) -> str | None:
    """None where ``convolve_3x3`` is the faster way, else the objection.

    Args:
        x: map ``(B, C, h, w)`` on the CPU in float32.
        weight: ``(K, C, 3, 3)``, for stride and padding 1.
    """
    out_channels, in_channels = weight.shape[:2]
    if x.numel() * out_channels * 9 < FEWEST_MULTIPLICATIONS:
        return 'the map is small'
    objection = LIBRARY.why_not()
    if objection is not None:
        return objection
    lanes = LIBRARY.loaded().lanes()
    if in_channels % lanes or out_channels % lanes:
        return f'channels must be multiples of {lanes}, got {in_channels} and {out_channels}'
    return None


@torch.library.custom_op('mmseg_m2f::convolve_3x3', mutates_args=(), device_types='cpu')
def convolve_3x3(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """Map ``(B, C, h, w)`` to ``(B, K, h, w)``, channels last; no gradient.

    Args:
        x: float32, of any strides; best channels last.
        weight: float32 ``(K, C, 3, 3)``.
        bias: float32 ``(K,)``.
        relu: whether negative outputs become 0.
    """
    strides = list(weight.stride())
    return _forward(x, weight.data_ptr(), strides, weight.shape[0], bias, relu)


@torch.library.custom_op(
    'mmseg_m2f::convolve_3x3_backward_input', mutates_args=(), device_types='cpu'
)
def backward_input(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient ``(B, C, h, w)`` of the map, channels last, from that of the result."""
    # The convolution with the weights turned around, and their channels exchanged.
    out_stride, in_stride, row, column = weight.stride()
    last = weight.data_ptr() + weight.element_size() * 2 * (row + column)
    strides = [in_stride, out_stride, -row, -column]
    return _forward(grad, last, strides, weight.shape[1], None, False)


@torch.library.custom_op(
    'mmseg_m2f::convolve_3x3_backward_weight', mutates_args=(), device_types='cpu'
)
def backward_weight(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient ``(K, C, 3, 3)`` of the weight."""
    x, grad = channels_last(x), channels_last(grad)
    out = x.new_empty(grad.shape[1], x.shape[1], 3, 3)
    library, sizes = LIBRARY.loaded(), _sizes(x, grad.shape[1])
    parts = _workspace(x, library.backward_weight_floats, sizes)
    library.backward_weight(
        sizes, _pointer(x), _pointer(grad), _pointer(out), _pointers(parts), _num_threads()
    )
    return out


def channels_last(x: Tensor) -> Tensor:
    """``x`` itself if it is in this order."""
    return x.contiguous(memory_format=torch.channels_last)


def _forward(
    x: Tensor, weight: int, strides: list[int], channels: int, bias: Tensor | None, relu: bool
) -> Tensor:
    x = channels_last(x)
    # A name keeps what the kernel reads alive.
    bias = None if bias is None else bias.contiguous()
    batch, _, height, width = x.shape
    out = x.new_empty(batch, height, width, channels)
    library, sizes = LIBRARY.loaded(), _sizes(x, channels)
    parts = _workspace(x, library.forward_floats, sizes)
    library.forward(
        sizes,
        _pointer(x),
        ctypes.c_void_p(weight),
        (ctypes.c_int64 * 4)(*strides),
        _pointer(bias),
        ctypes.c_bool(relu),
        _pointer(out),
        _pointers(parts),
        _num_threads(),
    )
    return out.permute(0, 3, 1, 2)


def _workspace(x: Tensor, write_floats: Any, sizes: ctypes.Array) -> list[Tensor]:
    floats = (ctypes.c_int64 * 3)()
    write_floats(sizes, floats)
    return [x.new_empty(number) for number in floats]


def _sizes(x: Tensor, channels: int) -> ctypes.Array:
    batch, in_channels, height, width = x.shape
    return (ctypes.c_int64 * 5)(batch, height, width, in_channels, channels)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _pointers(tensors: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _num_threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())
