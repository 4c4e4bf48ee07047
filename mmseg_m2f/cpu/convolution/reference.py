"""The convolution and what follows it as PyTorch has them."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def convolve_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    scale: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """See ``ops.convolution.convolve``."""
    if scale is not None:
        weight = weight * scale[:, None, None, None]
    stride, padding, dilation = window
    y = F.conv2d(x, weight, bias, stride, padding, dilation)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y
