"""The convolution and what follows it on a CPU in float32, channels last, forward and backward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from mmseg_m2f.cpu.convolution import winograd
from mmseg_m2f.cpu.convolution.winograd import channels_last
from mmseg_m2f.cpu.linear import linear, onednn_linear, why_not_onednn, without_gaps

POINTWISE, WINOGRAD, DIRECT = 'pointwise', 'winograd', 'direct'


def why_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    scale: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> str | None:
    """None for float32 on a CPU with oneDNN and one group, else the objection."""
    given = [value for value in (x, weight, bias, scale, residual) if value is not None]
    objection = why_not_onednn(*given)
    if objection is not None:
        return objection
    if x.dim() != 4 or x.shape[1] != weight.shape[1] or x.numel() == 0:
        return f'a map {tuple(x.shape)} and a weight {tuple(weight.shape)} are not for one group'
    if scale is not None and scale.requires_grad:
        return 'it has no gradient for the scale'
    return None


def convolve_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    scale: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """See ``ops.convolution.convolve``."""
    # Here, where the derivative of a derivative can see it.
    x = channels_last(x)
    result: Tensor = _Convolve.apply(x, weight, bias, scale, residual, (tuple(window), relu))
    return result


class _Convolve(torch.autograd.Function):
    """All at once; with ReLU the result tells where the gradient passes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        residual: Tensor | None,
        settings: tuple[Sequence[int], bool],
    ) -> Tensor:
        """The result, channels last, as the map is."""
        window, relu = settings
        ctx.method, ctx.window = _method(x, weight, window), window
        run = {POINTWISE: _pointwise, WINOGRAD: _winograd, DIRECT: _direct}[ctx.method]
        y = run(x, _scaled(weight, scale), bias, window, residual, relu)
        ctx.save_for_backward(x, weight, scale, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the map, the weight, the bias and the residual."""
        x, weight, scale, y = ctx.saved_tensors
        grad = channels_last(grad)
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        needs_x, needs_weight, needs_bias, _, needs_residual, _ = ctx.needs_input_grad
        grad_x = _backward_input(ctx, grad, x, _scaled(weight, scale)) if needs_x else None
        grad_weight = _backward_weight(ctx, grad, x, weight) if needs_weight else None
        if grad_weight is not None and scale is not None:
            grad_weight = grad_weight.mul_(scale[:, None, None, None])
        grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, grad if needs_residual else None, None


def _method(x: Tensor, weight: Tensor, window: Sequence[int]) -> str:
    kernel = tuple(weight.shape[2:])
    if kernel == (1, 1) and window[1] == 0:
        return POINTWISE
    if kernel == (3, 3) and tuple(window) == (1, 1, 1) and winograd.why_not(x, weight) is None:
        return WINOGRAD
    return DIRECT


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight if scale is None else weight * scale[:, None, None, None]


def _pixels(x: Tensor, stride: int = 1) -> Tensor:
    """The pixels ``(B, h, w, C)`` that a 1 x 1 kernel visits."""
    return x.permute(0, 2, 3, 1)[:, ::stride, ::stride]


def _pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    pixels, matrix = _pixels(x, window[0]), without_gaps(weight.flatten(1))
    if residual is None:
        y = onednn_linear(pixels, matrix, bias, 'relu' if relu else 'none')
    else:
        other = _pixels(channels_last(residual))
        y = torch.ops.mkldnn._linear_pointwise.binary(pixels, other, matrix, bias, 'add')
        y = _finished(y, None, relu)
    return y.permute(0, 3, 1, 2)


def _winograd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    at_once = relu and residual is None
    y = winograd.convolve_3x3(x, weight, bias, at_once)
    return _finished(y, residual, relu and not at_once)


def _direct(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    stride, padding, dilation = window
    y = torch.conv2d(x, weight, bias, stride, padding, dilation)
    return _finished(y, residual, relu)


def _finished(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """``y`` itself, with what is left to do."""
    if residual is not None:
        y = y.add_(residual)
    return y.relu_() if relu else y


def _method_of_backward(ctx: FunctionCtx) -> str:
    """With ``create_graph`` by operators that have a derivative themselves."""
    method: str = ctx.method  # type: ignore[attr-defined]
    return DIRECT if method == WINOGRAD and torch.is_grad_enabled() else method


def _backward_input(ctx: FunctionCtx, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    method, window = _method_of_backward(ctx), ctx.window  # type: ignore[attr-defined]
    if method == WINOGRAD:
        return winograd.backward_input(grad, weight)
    if method == DIRECT:
        return _library_backward(grad, x, weight, window, 0)
    visited = linear(_pixels(grad), weight.flatten(1).T, None).permute(0, 3, 1, 2)
    if window[0] == 1:
        return visited
    grad_x = torch.zeros_like(x)
    grad_x[..., :: window[0], :: window[0]] = visited
    return grad_x


def _backward_weight(ctx: FunctionCtx, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    method, window = _method_of_backward(ctx), ctx.window  # type: ignore[attr-defined]
    if method == WINOGRAD:
        return winograd.backward_weight(x, grad)
    if method == DIRECT:
        return _library_backward(grad, x, weight, window, 1)
    grads = _pixels(grad).reshape(-1, grad.shape[1])
    pixels = _pixels(x, window[0]).reshape(-1, x.shape[1])
    return (grads.T @ pixels).view_as(weight)


def _library_backward(
    grad: Tensor, x: Tensor, weight: Tensor, window: Sequence[int], which: int
) -> Tensor:
    """OneDNN's gradient of the map (0) or of the weight (1)."""
    stride, padding, dilation = ([value] * 2 for value in window)
    mask = [index == which for index in range(3)]
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, mask
    )
    gradient: Tensor = found[which]
    return gradient
