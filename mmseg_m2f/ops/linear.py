"""The affine map of a linear layer, by what computes it fastest."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F


def linear(
    x: Float[Tensor, '*batch C'], weight: Float[Tensor, 'D C'], bias: Float[Tensor, ' D'] | None
) -> Float[Tensor, '*batch D']:
    """``x @ weight.T + bias``: ``F.linear`` up to rounding.

    float32 on a CPU runs on oneDNN where no derivative is asked for. There ``F.linear`` fills the
    result with the bias and has the BLAS add the product to it, which is one pass over the result
    more. In half types it runs on oneDNN anyway; compilers and exporters are to see ``F.linear``.
    PyTorch's counter of FLOPs does not know oneDNN's operator.

    Raises:
        RuntimeError: sizes or types that do not fit, as ``F.linear`` has it.
    """
    if _runs_on_onednn(x, weight, bias):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')
        return product
    return F.linear(x, weight, bias)


def is_captured() -> bool:
    """Whether a compiler or an exporter takes down what runs."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return bool(torch.compiler.is_compiling() or tracing)


def _runs_on_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    given = [x, weight] if bias is None else [x, weight, bias]
    return (
        not torch.is_grad_enabled()
        and all(value.device.type == 'cpu' and value.dtype == torch.float32 for value in given)
        # Subclasses (of quantised or distributed weights) have products of their own.
        and all(type(value) in (Tensor, nn.Parameter) for value in given)
        # What does not fit is PyTorch's to report.
        and x.shape[-1] == weight.shape[1] > 0
        and (bias is None or bias.shape == weight.shape[:1])
        and all(unpack_dual(value).tangent is None for value in given)
        and not torch.is_autocast_enabled('cpu')
        and not is_captured()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )
