"""Faster forwards of the residual blocks of mmseg and mmdet."""

import functools
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmseg_m2f.cpu.conditions import may_run
from mmseg_m2f.cpu.convolution import convolve, is_plain

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
# nn.Identity stands where a norm has been fused into its convolution before.
_INNER = {nn.Conv2d, *_NORMS, nn.Identity, nn.ReLU, nn.Sequential, nn.AvgPool2d}


def block(self: Any, x: Tensor) -> Tensor:
    """Compute a ``BasicBlock`` or ``Bottleneck`` with frozen norms as a chain of convolutions.

    A frozen norm multiplies and shifts its input's channels: the factor becomes part of the
    weights, the shift of the bias. The shortcut and ReLU follow each product at once.
    """
    if not (may_run(self, x, _INNER) and _is_known(self)):
        return type(self).forward(self, x)
    if self.with_cp and x.requires_grad:
        result: Tensor = checkpoint(functools.partial(_run_block, self), x, use_reentrant=False)
        return result
    return _run_block(self, x)


def _is_known(block: Any) -> bool:
    parts = list(block.modules())
    return (
        not getattr(block, 'with_plugins', False)
        and all(is_plain(part) for part in parts if isinstance(part, nn.Conv2d))
        and all(_is_frozen(part) for part in parts if isinstance(part, _NORMS))
        and type(block.relu) is nn.ReLU
    )


def _is_frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> bool:
    return not norm.training and norm.running_mean is not None


def _run_block(block: Any, x: Tensor) -> Tensor:
    names = [str(index) for index in (1, 2, 3) if hasattr(block, f'conv{index}')]
    *first, last = [(getattr(block, f'conv{n}'), getattr(block, f'norm{n}')) for n in names]
    shortcut, out = x, x
    if block.downsample is not None:
        *pool, convolution, norm = block.downsample
        for part in pool:
            shortcut = part(shortcut)
        shortcut = _run(convolution, norm, shortcut)
    for convolution, norm in first:
        out = _run(convolution, norm, out, relu=True)
    return _run(*last, out, relu=True, residual=shortcut)


def _run(
    convolution: nn.Conv2d,
    norm: Any,
    x: Tensor,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute ``relu(norm(convolution(x)) + residual)``."""
    weight, bias = convolution.weight, convolution.bias
    if not isinstance(norm, nn.Identity):
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        bias = shift * scale if norm.bias is None else shift * scale + norm.bias
        weight = weight * scale[:, None, None, None]
    return convolve(convolution, x, weight, bias, relu=relu, residual=residual)
