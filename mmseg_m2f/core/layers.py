"""The small parts both decoders are made of, and the official initializers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head attention with one boolean mask for all heads.

    Parameters are named and laid out as in ``nn.MultiheadAttention`` (one fused ``in_proj``).
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        # The official code treats q, k, v as ONE 3C x C matrix: the Xavier bound uses fan-out 3C.
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, 'B Q C'],
        key: Float[Tensor, 'B S C'],
        value: Float[Tensor, 'B S C'],
        may_attend: Bool[Tensor, 'B 1 Q S'] | None = None,
    ) -> Float[Tensor, 'B Q C']:
        """Attend from ``query`` to ``value``; ``may_attend`` is True where attention is allowed."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            self._split_heads(F.linear(x, weight, bias))
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Float[Tensor, 'B S C']) -> Float[Tensor, 'B heads S D']:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """``x + linear2(relu(linear1(x)))``: the residual is inside, the norm is the caller's.

    Weights are Xavier-uniform; biases keep PyTorch's default, as in the official code.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Float[Tensor, '*batch C']) -> Float[Tensor, '*batch C']:
        """Transform each token by itself."""
        return x + self.linear2(F.relu(self.linear1(x)))


class ConvNorm(nn.Module):
    """Convolution, group norm and, if ``activate``, ReLU; padding keeps the size."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 1,
        *,
        norm_groups: int = 32,
        bias: bool = False,
        activate: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, padding=padding, bias=bias)
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.activate = activate

    def forward(self, x: Float[Tensor, 'B C h w']) -> Float[Tensor, 'B C2 h w']:
        """Map ``(B, in_channels, h, w)`` to ``(B, channels, h, w)``."""
        y = self.norm(self.conv(x))
        return F.relu(y) if self.activate else y


def resize_bilinear(
    maps: Float[Tensor, 'B C h w'], size: Sequence[int]
) -> Float[Tensor, 'B C H W']:
    """Resize bilinearly to ``size``, ``align_corners=False``."""
    return F.interpolate(maps, size=tuple(size), mode='bilinear', align_corners=False)


def run_layer(layer: nn.Module, *args: Any, checkpointing: bool) -> Tensor:
    """Call ``layer(*args)``, if asked with activation checkpointing.

    The backward pass then computes the layer a second time, so its inner results are not kept. The
    layers draw no random numbers, so the state of the generators need not be kept.
    """
    if not (checkpointing and torch.is_grad_enabled()):
        return layer(*args)
    return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False)


def sine_encoding(
    size: Sequence[int], channels: int, *, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, 'C h w']:
    """Compute the sine position encoding of a map, with positions normalized to ``(0, 2 pi]``.

    The first half of the channels encodes y, the second x; sine and cosine interleave. Computed in
    float32 or float64, because half types cannot tell neighboring positions apart.

    Source: DETR; official ``transformer_decoder/position_encoding.py`` (eps 1e-6, temperature 1e4).
    """
    height, width = size
    compute_dtype = torch.promote_types(dtype, torch.float32)
    y = _axis_encoding(height, channels // 2, device=device, dtype=compute_dtype)  # (C / 2, h)
    x = _axis_encoding(width, channels // 2, device=device, dtype=compute_dtype)  # (C / 2, w)
    y = y[:, :, None].expand(-1, -1, width)
    x = x[:, None, :].expand(-1, height, -1)
    return torch.cat([y, x]).to(dtype)


def _axis_encoding(
    num_steps: int, channels: int, *, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, 'C S']:
    position = torch.arange(1, num_steps + 1, device=device, dtype=dtype)
    position = position / (num_steps + 1e-6) * (2 * math.pi)
    index = torch.arange(channels, device=device)
    exponent = 2 * index.div(2, rounding_mode='floor').to(dtype) / channels
    angle = position / 10000 ** exponent[:, None]
    return torch.where((index % 2 == 0)[:, None], angle.sin(), angle.cos())


def init_c2_xavier(conv: nn.Conv2d) -> None:
    """Initialize as Detectron2's ``c2_xavier_fill``: Kaiming-uniform with a = 1, zero bias."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_xavier_normal(part: nn.Module) -> None:
    """Draw the matrices of all attention and feed-forward layers of ``part`` from a normal law.

    The variance is that of Xavier-uniform. Deformable attention, convolutions, embeddings and the
    decoder's heads keep their values.

    Source: ``init_weights`` of mmdet's ``Mask2FormerHead`` and ``MSDeformAttnPixelDecoder``.
    """
    for module in part.modules():
        if isinstance(module, Attention | FeedForward):
            for value in module.parameters():
                if value.dim() > 1:
                    nn.init.xavier_normal_(value)
