"""The affine map of a linear layer, by what computes it fastest."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def linear(
    x: Float[Tensor, '*batch C'], weight: Float[Tensor, 'D C'], bias: Float[Tensor, ' D'] | None
) -> Float[Tensor, '*batch D']:
    """``x @ weight.T + bias``: ``F.linear`` up to rounding.

    float32 on a CPU runs on oneDNN where no gradient is asked for. There ``F.linear`` fills the
    result with the bias and has the BLAS add the product to it, which is one pass over the result
    more. In half types it runs on oneDNN anyway; compilers and exporters are to see ``F.linear``.
    """
    if _runs_on_onednn(x, weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')
        return product
    return F.linear(x, weight, bias)


def is_captured() -> bool:
    """Whether a compiler or an exporter takes down what runs."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return bool(torch.compiler.is_compiling() or tracing)


def _runs_on_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.device.type == weight.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        # Subclasses (of quantised or distributed weights) have products of their own.
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled('cpu')
        and not is_captured()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )
