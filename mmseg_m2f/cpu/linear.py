"""The affine map of a linear layer, by what computes it fastest."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F


def linear(
    x: Float[Tensor, '*batch C'],
    weight: Float[Tensor, 'D C'],
    bias: Float[Tensor, ' D'] | None,
    *,
    relu: bool = False,
) -> Float[Tensor, '*batch D']:
    """``x @ weight.T + bias``, with ``relu`` without what is negative: PyTorch's up to rounding.

    float32 on a CPU runs on oneDNN, where the bias and ``relu`` are part of the product, and so
    does the gradient of ``x``. In half types ``F.linear`` runs on oneDNN anyway; compilers and
    exporters are to see ``F.linear``. PyTorch's counter of FLOPs does not know oneDNN's operator.

    Raises:
        RuntimeError: sizes or types that do not fit, as ``F.linear`` has it.
    """
    if _runs_on_onednn(x, weight, bias):
        if torch.is_grad_enabled():
            result: Tensor = _Linear.apply(x, weight, bias, relu)
            return result
        return onednn_linear(x, weight, bias, 'relu' if relu else 'none')
    product = F.linear(x, weight, bias)
    # With gradient not in place: the result is a view of a product, and the gradient of what
    # happens to a view in place is copied twice.
    return F.relu(product, inplace=not torch.is_grad_enabled()) if relu else product


def onednn_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = 'none'
) -> Tensor:
    """The product where ``why_not_onednn`` has no objection; ``activation`` is oneDNN's name."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        x, without_gaps(weight), bias, activation, [], ''
    )
    return product


def without_gaps(weight: Tensor) -> Tensor:
    """The matrix, copied if its numbers do not lie side by side, by rows or by columns.

    Of other strides oneDNN takes its reference code, a thousand times as slow.
    """
    by_columns = weight.stride() == (1, weight.shape[0])
    return weight if by_columns or weight.is_contiguous() else weight.contiguous()


def why_not_onednn(*given: Tensor) -> str | None:
    """None where oneDNN can take these tensors in float32, else the objection."""
    # Subclasses (of quantised or distributed weights) have products of their own.
    if not all(type(value) in (Tensor, nn.Parameter) for value in given):
        return 'it is made for plain tensors'
    if not all(value.device.type == 'cpu' and value.dtype == torch.float32 for value in given):
        return 'it is made for float32 on a CPU'
    if torch._C._are_functorch_transforms_active():
        return 'torch.func has no rules for it'
    if any(unpack_dual(value).tangent is not None for value in given):
        return 'it has no forward-mode derivative'
    if torch.is_autocast_enabled('cpu'):
        return 'an autocast asks for another type'
    if is_captured():
        return 'what is captured is to be of PyTorch'
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return 'oneDNN is not there or switched off'
    return None


def is_captured() -> bool:
    """Whether a compiler or an exporter takes down what runs."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return bool(torch.compiler.is_compiling() or tracing)


def _runs_on_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    given = [x, weight] if bias is None else [x, weight, bias]
    return (
        # What does not fit is PyTorch's to report.
        x.dim() > 0
        and x.shape[-1] == weight.shape[1] > 0
        and (bias is None or bias.shape == weight.shape[:1])
        and why_not_onednn(*given) is None
    )


class _Linear(torch.autograd.Function):
    """The product on oneDNN; with ReLU its result tells where the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        """The product."""
        y = onednn_linear(x, weight, bias, 'relu' if relu else 'none')
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of ``x``, the weight and the bias; the products are differentiable again."""
        x, weight, y = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_x = linear(grad, weight.T, None) if needs_x else None
        rows = grad.reshape(-1, grad.shape[-1])
        grad_weight = rows.T @ x.reshape(-1, x.shape[-1]) if needs_weight else None
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None, None
