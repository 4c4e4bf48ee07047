"""Linear layers on oneDNN, by private operators of PyTorch, which stand in this file alone."""

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

logger = logging.getLogger('mmseg_m2f')


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute ``relu(x @ weight.T + bias + residual)`` in one call of oneDNN, differentiable.

    The caller has asked ``objection``.

    Args:
        x: float32 ``(..., C)``.
        weight: float32 ``(D, C)``.
        bias: float32 ``(D,)``.
        relu: whether negative results become 0.
        residual: float32 ``(..., D)``, added before ``relu``.
    """
    if torch.is_grad_enabled():
        result: Tensor = _Linear.apply(x, weight, bias, residual, relu)
        return result
    return _product(x, weight, bias, residual, relu)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``gelu(x @ weight.T + bias)`` in one call of oneDNN, without gradient."""
    result: Tensor = _operator()(x, _without_gaps(weight), bias, 'gelu', [], 'none')
    return result


def objection(*given: Tensor) -> str | None:
    """Return why the functions of this file cannot take these tensors, or None."""
    # Subclasses (quantized, distributed or fake weights) have products of their own.
    if not all(type(value) in (Tensor, nn.Parameter) for value in given):
        return 'a tensor is of a subclass'
    if not all(value.device.type == 'cpu' and value.dtype == torch.float32 for value in given):
        return 'it is for float32 on a CPU'
    if torch.is_autocast_enabled('cpu'):
        return 'an autocast asks for another type'
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return 'a compiler or an exporter is to see the operators of PyTorch'
    if torch._C._are_functorch_transforms_active():
        return 'torch.func has no rules for it'
    if any(unpack_dual(value).tangent is not None for value in given):
        return 'it has no forward-mode derivative'
    if not torch.backends.mkldnn.enabled:
        return 'oneDNN is switched off'
    return failure()


@functools.cache
def failure() -> str | None:
    """Return why the private operators cannot be used, or None; a reason is logged.

    Each is run once and compared with the public operators.
    """
    reason = None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x, weight, bias, other = (
                torch.randn(size) for size in ((3, 2, 16), (8, 16), (8,), (3, 2, 8))
            )
            plain = F.linear(x, weight, bias)
            pairs = [
                (_product(x, weight, bias, None, False), plain),
                (_product(x, weight, None, None, False), F.linear(x, weight)),
                (_product(x, weight, bias, None, True), plain.relu()),
                (_product(x, weight, bias, other, False), plain + other),
                (linear_gelu(x, weight, bias), F.gelu(plain)),
            ]
            # Sums of 16 products of numbers around 1.
            if not all(torch.allclose(ours, public, atol=1e-4) for ours, public in pairs):
                reason = 'they give other numbers than the public operators'
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition('\n')[0]
    if reason is not None:
        logger.warning("cpu: PyTorch's operators of oneDNN cannot be used: %s", reason)
    return reason


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    weight = _without_gaps(weight)
    if residual is None:
        return _operator()(x, weight, bias, 'relu' if relu else 'none', [], '')
    result: Tensor = _operator().binary(x, residual, weight, bias, 'add')
    return result.relu_() if relu else result


def _operator() -> Any:
    return torch.ops.mkldnn._linear_pointwise


def _without_gaps(weight: Tensor) -> Tensor:
    """Return the matrix with its numbers side by side, by rows or by columns.

    With other strides oneDNN takes its reference code, a thousand times as slow.
    """
    by_columns = weight.stride() == (1, weight.shape[0])
    return weight if by_columns or weight.is_contiguous() else weight.contiguous()


class _Linear(torch.autograd.Function):
    """A product with its gradients. After ReLU, the gradient passes where the result is not 0."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        y = _product(x, weight, bias, residual, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        needs_x, needs_weight, needs_bias, needs_residual, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            is_plain = objection(grad, weight) is None
            grad_x = linear(grad, weight.T, None) if is_plain else F.linear(grad, weight.T)
        rows = grad.reshape(-1, grad.shape[-1])
        if needs_weight:
            grad_weight = rows.T @ x.reshape(-1, x.shape[-1])
        if needs_bias:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias, grad if needs_residual else None, None
