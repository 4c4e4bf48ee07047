"""Attention, feed-forward, position encoding and the official initialisers."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from mmseg_m2f.cpu.linear import is_captured, linear

# Float32 numbers of a hidden layer, 2 MiB, that the caches of a CPU hold between its two products.
CACHED_HIDDEN = 2**19


class Linear(nn.Linear):
    """``nn.Linear`` through ``ops.linear``: the same parameters, names and initialisation."""

    def forward(
        self, x: Float[Tensor, '*batch C'], relu: bool = False
    ) -> Float[Tensor, '*batch D']:
        """``x @ weight.T + bias``, with ``relu`` without what is negative."""
        return linear(x, self.weight, self.bias, relu=relu)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, which a shorter way would pass by."""
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return bool(any(vars(module).get(kind) for kind in kinds) or _has_any_global_hook())


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's ``forward``, or something else."""
    return has_hooks(module) or 'forward' in vars(module)


class Attention(nn.Module):
    """Multi-head attention whose boolean mask is shared by the heads.

    Parameters are named and laid out as in ``nn.MultiheadAttention`` (one fused ``in_proj``), but
    the product runs through ``scaled_dot_product_attention`` and no weights are returned, so that
    no ``(B * heads, Q, S)`` float mask or probability tensor has to exist.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = Linear(channels, channels)
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
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            self._split_heads(linear(x, weight, bias))
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Float[Tensor, 'B S C']) -> Float[Tensor, 'B heads S D']:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def run_layer(layer: nn.Module, *args: Any, checkpointing: bool) -> Tensor:
    """``layer(*args)``; with ``checkpointing`` computed again in the backward pass.

    The layers draw no random numbers, so none have to be repeated.
    """
    if not (checkpointing and torch.is_grad_enabled()):
        return layer(*args)
    return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False)


def relu(x: Float[Tensor, '*shape']) -> Float[Tensor, '*shape']:
    """Of a linear layer's result, which is overwritten where that saves something.

    With gradient it does not: the result is a view of a product, and the gradient of what happens
    to a view in place is copied twice.
    """
    return F.relu(x, inplace=not torch.is_grad_enabled())


class FeedForward(nn.Module):
    """``x`` plus linear, ReLU, linear; the norm belongs to the layer that owns it.

    Weights are Xavier-uniform; biases keep PyTorch's default, as in the official code.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.linear1 = Linear(channels, hidden)
        self.linear2 = Linear(hidden, channels)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Float[Tensor, '*batch C']) -> Float[Tensor, '*batch C']:
        """Position-wise: ``x`` and the result have shape ``(..., C)``.

        Without gradient on a CPU many tokens go through the layers in pieces: so hooks of
        ``linear1`` and ``linear2`` see them.
        """
        if not self._outgrows_caches(x):
            return x + self._change(x)
        tokens = x.flatten(end_dim=-2)
        pieces = tokens.split(max(CACHED_HIDDEN // self.hidden, 1))
        change = self._change_of_pieces()
        first = pieces[0] + change(pieces[0])
        out = first.new_empty(tokens.shape)
        places = out.split(len(first))
        places[0].copy_(first)
        for piece, place in zip(pieces[1:], places[1:], strict=True):
            place.copy_(piece + change(piece))
        return out.view(x.shape)

    def _outgrows_caches(self, x: Tensor) -> bool:
        """Whether the hidden layer, which nobody keeps, would go to the memory of a CPU and back.

        What a compiler or an exporter sees is one piece.
        """
        return (
            x.device.type == 'cpu'
            and not torch.is_grad_enabled()
            and x.shape[:-1].numel() * self.hidden > 2 * CACHED_HIDDEN
            and not is_captured()
        )

    def _change_of_pieces(self) -> Callable[[Tensor], Tensor]:
        """``_change``, with the weights in the type of an autocast.

        It would cast them for every piece where it keeps no copy: of frozen weights and, in newer
        PyTorch, in inference mode.
        """
        if not (_is_plain(self.linear1) and _is_plain(self.linear2)):
            return self._change
        (weight1, bias1), (weight2, bias2) = _in_autocast(self.linear1), _in_autocast(self.linear2)
        return lambda x: linear(linear(x, weight1, bias1, relu=True), weight2, bias2)

    def _change(self, x: Tensor) -> Tensor:
        if _is_plain(self.linear1):
            return self.linear2(self.linear1(x, relu=True))
        # In the place of the layer, or around it, may be what adds something before ReLU.
        return self.linear2(relu(self.linear1(x)))


def _is_plain(layer: nn.Module) -> bool:
    """Whether nothing is in the place of the layer, or around it."""
    return type(layer) is Linear and not is_watched(layer)


def _in_autocast(layer: Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as an autocast, if one is active, makes them for the product.

    Subclasses (of quantised or distributed weights) are left to a product of their own.
    """
    device_type, dtype = layer.weight.device.type, None
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)

    def cast(value: Tensor) -> Tensor:
        plain = type(value) in (Tensor, nn.Parameter) and value.dtype == torch.float32
        return value.to(dtype) if plain and dtype is not None else value

    return cast(layer.weight), None if layer.bias is None else cast(layer.bias)


def sine_encoding(
    size: tuple[int, int], channels: int, *, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, 'C h w']:
    """Two-dimensional sine position encoding, normalised to ``(0, 2 pi]``.

    The first half of the channels encodes y, the second x; sine and cosine interleave. Computed in
    float32 at least, because 10000 to the power of 1 is out of reach for half types' precision.

    Source: DETR; official ``transformer_decoder/position_encoding.py`` (eps 1e-6, temperature 1e4).
    """
    exact = torch.promote_types(dtype, torch.float32)
    y, x = (_axis_encoding(n, channels // 2, device=device, dtype=exact) for n in size)
    height, width = size
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
    """Detectron2's ``c2_xavier_fill``: Kaiming-uniform with a = 1 (fan-in), zero bias."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_xavier_normal(part: nn.Module) -> None:
    """Draw the matrices of all attention and feed-forward layers of ``part`` anew.

    The variance is that of Xavier-uniform, the law is another. Deformable attention, convolutions,
    embeddings and the heads of the decoder keep theirs.

    Source: ``init_weights`` of mmdet's ``Mask2FormerHead`` and ``MSDeformAttnPixelDecoder``.
    """
    for module in part.modules():
        if isinstance(module, Attention | FeedForward):
            for value in module.parameters():
                if value.dim() > 1:
                    nn.init.xavier_normal_(value)
