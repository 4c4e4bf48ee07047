"""Faster forwards of the Swin Transformers of mmseg and mmdet, without gradient."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.cpu import onednn
from mmseg_m2f.cpu.conditions import has_custom_call, may_run


def window_attention(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute ``WindowMSA``: no attention weights are stored, and its products run on oneDNN.

    Args:
        self: the module.
        x: windows ``(B * windows, N, C)``.
        mask: added to the logits ``(windows, N, N)``.
    """
    if not _may_run(self, x, {nn.Linear, nn.Dropout, nn.Softmax}):
        return type(self).forward(self, x, mask)
    num_windows, num_tokens, channels = x.shape
    qkv = onednn.linear(x, self.qkv.weight, self.qkv.bias)
    q, k, v = qkv.view(num_windows, num_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    index = self.relative_position_index
    table = self.relative_position_bias_table.t()
    added = table[:, index.flatten()].view(1, -1, num_tokens, num_tokens)
    if mask is not None:
        added = (added + mask[:, None]).repeat(num_windows // len(mask), 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=self.scale)
    out = out.transpose(1, 2).reshape(num_windows, num_tokens, channels)
    return onednn.linear(out, self.proj.weight, self.proj.bias)


def block(self: Any, x: Tensor, hw_shape: Sequence[int]) -> Tensor:
    """Compute ``SwinBlock`` with its feed-forward part on oneDNN.

    Args:
        self: the module.
        x: tokens ``(B, height * width, C)``.
        hw_shape: ``(height, width)``.
    """
    ffn = self.ffn
    if has_custom_call(ffn) or not (_may_run(ffn, x, _ffn_classes()) and _is_known(ffn)):
        return type(self).forward(self, x, hw_shape)
    x = x + self.attn(self.norm1(x), hw_shape)
    first, last = ffn.layers[0][0], ffn.layers[1]
    hidden = onednn.linear_gelu(self.norm2(x), first.weight, first.bias)
    return onednn.linear(hidden, last.weight, last.bias, residual=x)


def _may_run(module: nn.Module, x: Tensor, inner: Collection[type]) -> bool:
    """Return True as ``may_run`` does, but only without gradient and in evaluation mode."""
    is_training = any(part.training for part in module.modules())
    return not torch.is_grad_enabled() and not is_training and may_run(module, x, inner)


def _is_known(ffn: Any) -> bool:
    """Return True if the feed-forward part is linear, GELU, linear and the residual."""
    return (
        len(ffn.layers) == 3
        and type(ffn.layers[0][1]) is nn.GELU
        and ffn.layers[0][1].approximate == 'none'
        and type(ffn.gamma2) is nn.Identity
        and ffn.add_identity
    )


@functools.cache
def _ffn_classes() -> frozenset[type]:
    """Return the classes inside mmcv's ``FFN`` that need no call in evaluation mode."""
    from mmcv.cnn.bricks import drop, wrappers
    from mmengine.model import Sequential

    drops = (drop.DropPath, drop.Dropout, nn.Dropout, nn.Identity)
    return frozenset({Sequential, nn.Sequential, nn.Linear, wrappers.Linear, nn.GELU, *drops})
