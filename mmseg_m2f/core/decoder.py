"""Queries attend to the memory inside their predicted masks (paper section 3.2)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.core.config import DecoderConfig
from mmseg_m2f.core.layers import (
    Attention,
    FeedForward,
    resize_maps,
    run_layer,
    sine_encoding,
)
from mmseg_m2f.core.structures import (
    MaskPrediction,
    PixelFeatures,
    mask_logits,
    upcast_half,
)


@torch.no_grad()
def attention_mask(
    mask_embed: Float[Tensor, 'B Q C'], pooled_features: Float[Tensor, 'B C h w']
) -> Bool[Tensor, 'B 1 Q S']:
    """Where each query may attend at one level: inside its own mask (paper eq. 2).

    ``pooled_features`` are the mask features resized to the level. Bilinear resizing and the inner
    product commute, so this equals resizing full mask logits up to rounding. A negative logit
    blocks, as a sigmoid below one half does (from -6e-8 to 0 the float32 sigmoid is exactly one
    half, which the official code leaves open); a logit of 0, and NaN, stay open. A query whose
    mask is empty at this level attends everywhere. Computed in float32, without gradient; one mask
    for all heads.
    """
    with torch.autocast(pooled_features.device.type, enabled=False):
        logits = mask_logits(upcast_half(mask_embed), pooled_features).flatten(2)
    may_attend = ~(logits < 0)
    return (may_attend | ~may_attend.any(-1, keepdim=True))[:, None]


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward: residual, then LayerNorm."""

    def __init__(self, channels: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attn = Attention(channels, num_heads)
        self.cross_norm = nn.LayerNorm(channels)
        self.self_attn = Attention(channels, num_heads)
        self.self_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, ffn_dim)
        self.ffn_norm = nn.LayerNorm(channels)

    def forward(
        self,
        x: Float[Tensor, 'B Q C'],
        query_embed: Float[Tensor, 'Q C'],
        key: Float[Tensor, 'B S C'],
        value: Float[Tensor, 'B S C'],
        may_attend: Bool[Tensor, 'B 1 Q S'],
    ) -> Float[Tensor, 'B Q C']:
        """``key`` is ``value`` with the position encoding added."""
        x = self.cross_norm(x + self.cross_attn(x + query_embed, key, value, may_attend))
        position_query = x + query_embed
        x = self.self_norm(x + self.self_attn(position_query, position_query, x))
        return self.ffn_norm(self.ffn(x))


class MaskedAttentionDecoder(nn.Module):
    """``num_layers`` layers that visit the memory's levels in turn, coarsest first.

    Calling it gives all ``num_layers + 1`` predictions, the first from the learnt queries before
    any layer; ``predict`` gives the last only.

    Source: official ``mask2former_transformer_decoder.py``, whose ``DEC_LAYERS: 10`` counts the
    predictions. Class and mask heads keep PyTorch's default initialisation.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.query_feat = nn.Embedding(config.num_queries, channels)
        self.query_embed = nn.Embedding(config.num_queries, channels)
        self.level_embed = nn.Embedding(config.num_levels, channels)
        self.layers = nn.ModuleList(
            DecoderLayer(channels, config.num_heads, config.ffn_dim)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.class_embed = nn.Linear(channels, config.num_classes + 1)
        self.mask_embed = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))

    def forward(self, features: PixelFeatures) -> list[MaskPrediction]:
        """All predictions, in the order of the layers; every one is supervised in training."""
        states = self._decode(features)
        return [self._prediction(*state) for state in states]

    def predict(self, features: PixelFeatures) -> MaskPrediction:
        """The last prediction: no other class logits are computed."""
        return self._prediction(*self._decode(features)[-1])

    def _prediction(self, state: Tensor, mask_embed: Tensor) -> MaskPrediction:
        return MaskPrediction(self.class_embed(state), mask_embed)

    def _decode(self, features: PixelFeatures) -> list[tuple[Tensor, Tensor]]:
        """Normalised query states and mask embeddings, each ``(B, Q, C)``, for every prediction."""
        values, keys = self._memory(features.memory)
        pooled = self._pool(features)
        x = self.query_feat.weight.expand(values[0].shape[0], -1, -1)
        states = [self._heads(x)]
        for index, layer in enumerate(self.layers):
            level = index % self.config.num_levels
            may_attend = attention_mask(states[-1][1], pooled[level])
            args = (x, self.query_embed.weight, keys[level], values[level], may_attend)
            x = run_layer(layer, *args, checkpointing=self.config.checkpointing)
            states.append(self._heads(x))
        return states

    def _heads(self, x: Float[Tensor, 'B Q C']) -> tuple[Tensor, Tensor]:
        """The shared norm serves the heads only: the recurrent state stays un-normalised by it."""
        state = self.norm(x)
        embed = state
        for linear in self.mask_embed[:-1]:
            embed = F.relu(linear(embed))
        return state, self.mask_embed[-1](embed)

    def _memory(self, memory: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Values ``(B, S, C)`` (memory + level embedding) and keys (+ position) of each level."""
        if len(memory) != self.config.num_levels:
            raise ValueError(
                f'the decoder was built for {self.config.num_levels} levels, '
                f'the pixel decoder gave {len(memory)}'
            )
        values = [
            x.flatten(2).transpose(1, 2) + embed
            for x, embed in zip(memory, self.level_embed.weight, strict=True)
        ]
        keys = [
            value + self._position(x).flatten(1).T for value, x in zip(values, memory, strict=True)
        ]
        return values, keys

    def _position(self, x: Float[Tensor, 'B C h w']) -> Float[Tensor, 'C h w']:
        size = (x.shape[-2], x.shape[-1])
        return sine_encoding(size, self.config.channels, device=x.device, dtype=x.dtype)

    @torch.no_grad()
    def _pool(self, features: PixelFeatures) -> list[Tensor]:
        """Mask features resized to each level once, in float32: they serve attention masks only."""
        exact = upcast_half(features.mask_features)
        return [resize_maps(exact, x.shape[-2:]) for x in features.memory]
