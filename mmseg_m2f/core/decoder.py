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
    """Allow each query the pixels of its own predicted mask at one level (paper eq. 2).

    ``pooled_features`` are the mask features resized to the level. Bilinear resizing and the inner
    product commute, so that this equals resizing full mask logits, up to rounding. A query whose
    mask is empty at this level may attend everywhere. One mask serves all heads. Computed in
    float32 and without gradient.

    A negative logit blocks, as officially a sigmoid below one half does. A logit of 0 and NaN stay
    open. (From -6e-8 to 0 the float32 sigmoid is exactly one half, which the official code leaves
    open.)
    """
    with torch.autocast(pooled_features.device.type, enabled=False):
        logits = mask_logits(upcast_half(mask_embed), pooled_features).flatten(2)
    may_attend = ~(logits < 0)
    return (may_attend | ~may_attend.any(-1, keepdim=True))[:, None]


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and feed-forward, each with residual and post-norm."""

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
        """Update the query states ``x``; ``key`` is ``value`` with its position encoding added."""
        x = self.cross_norm(x + self.cross_attn(x + query_embed, key, value, may_attend))
        position_query = x + query_embed
        x = self.self_norm(x + self.self_attn(position_query, position_query, x))
        return self.ffn_norm(self.ffn(x))


class MaskedAttentionDecoder(nn.Module):
    """Layers of queries that visit the memory's levels in turn, coarsest first.

    A call gives all ``num_layers + 1`` predictions, the first from the learnt queries before any
    layer; ``predict`` gives the last one only. Class and mask heads keep PyTorch's default
    initialisation.

    Source: official ``mask2former_transformer_decoder.py``, whose ``DEC_LAYERS: 10`` counts the
    predictions.
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
        """Return all predictions in the order of the layers; training supervises every one."""
        return [self._predict(*state) for state in self._decode(features)]

    def predict(self, features: PixelFeatures) -> MaskPrediction:
        """Return the last prediction, without the class logits of the others."""
        return self._predict(*self._decode(features)[-1])

    def _predict(self, state: Tensor, mask_embed: Tensor) -> MaskPrediction:
        return MaskPrediction(self.class_embed(state), mask_embed)

    def _decode(self, features: PixelFeatures) -> list[tuple[Tensor, Tensor]]:
        """Return query state and mask embedding, each ``(B, Q, C)``, of every prediction."""
        keys, values = self._keys_and_values(features.memory)
        pooled = self._pool(features)
        x = self.query_feat.weight.expand(len(features.mask_features), -1, -1)
        states = [self._heads(x)]
        for index, layer in enumerate(self.layers):
            level = index % self.config.num_levels
            _, mask_embed = states[-1]
            may_attend = attention_mask(mask_embed, pooled[level])
            args = (x, self.query_embed.weight, keys[level], values[level], may_attend)
            x = run_layer(layer, *args, checkpointing=self.config.checkpointing)
            states.append(self._heads(x))
        return states

    def _heads(self, x: Float[Tensor, 'B Q C']) -> tuple[Tensor, Tensor]:
        """Return the normalised state and its mask embedding; ``x`` itself goes on without norm."""
        state = self.norm(x)
        hidden, last = self.mask_embed[:-1], self.mask_embed[-1]
        embed = state
        for linear in hidden:
            embed = F.relu(linear(embed))
        return state, last(embed)

    def _keys_and_values(self, memory: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tokens ``(B, S, C)`` of each level: values, and keys with their positions."""
        if len(memory) != self.config.num_levels:
            raise ValueError(
                f'the decoder was built for {self.config.num_levels} levels, '
                f'the pixel decoder gave {len(memory)}'
            )
        keys, values = [], []
        for x, embed in zip(memory, self.level_embed.weight, strict=True):
            position = sine_encoding(
                x.shape[-2:], self.config.channels, device=x.device, dtype=x.dtype
            )
            values.append(x.flatten(2).transpose(1, 2) + embed)
            keys.append(values[-1] + position.flatten(1).T)
        return keys, values

    @torch.no_grad()
    def _pool(self, features: PixelFeatures) -> list[Tensor]:
        """Resize the mask features to each level once; they serve the attention masks only."""
        exact = upcast_half(features.mask_features)
        return [resize_maps(exact, x.shape[-2:]) for x in features.memory]
