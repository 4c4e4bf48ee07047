"""Queries attend to the memory inside their predicted masks (paper section 3.2)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.core.config import DecoderConfig
from mmseg_m2f.core.layers import Attention, FeedForward, resize_bilinear, run_layer, sine_encoding
from mmseg_m2f.core.structures import MaskPrediction, PixelFeatures, mask_logits, upcast_half


@torch.no_grad()
def attention_mask(
    mask_embed: Float[Tensor, 'B Q C'], level_features: Float[Tensor, 'B C h w']
) -> Bool[Tensor, 'B 1 Q S']:
    """Allow each query the pixels of its own predicted mask at one level (paper eq. 2).

    ``level_features`` are the mask features resized to the level; ``S = h * w``. Bilinear resizing
    and the inner product commute, so this equals resized mask logits, up to rounding. A query whose
    mask is empty at this level may attend everywhere. One mask serves all heads. Computed in
    float32 and without gradient.

    Negative logits block; 0 and NaN do not. The official code blocks where the float32 sigmoid is
    below one half. From -6e-8 to 0 it is exactly one half: we block these logits, the official code
    does not.
    """
    with torch.autocast(level_features.device.type, enabled=False):
        logits = mask_logits(upcast_half(mask_embed), level_features).flatten(2)
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
        """Update the query states ``x`` by attention to the ``S`` tokens of one level.

        ``key`` is ``value`` plus its position encoding. ``may_attend`` is True where a query may
        attend to a token.
        """
        # Attention takes (query, key, value, mask). Positions are never added to the value.
        x = self.cross_norm(x + self.cross_attn(x + query_embed, key, value, may_attend))
        position_query = x + query_embed
        x = self.self_norm(x + self.self_attn(position_query, position_query, x))
        return self.ffn_norm(self.ffn(x))  # FeedForward adds its own input


class MaskedAttentionDecoder(nn.Module):
    """Layers that update the queries from the memory's levels in turn, coarsest level first.

    A call returns all ``num_layers + 1`` predictions, the first from the learned queries before any
    layer; ``predict`` returns the last one only. Defaults are the paper's: 9 layers of 8 heads, 3
    levels, 256 channels, 100 queries. Class and mask heads keep PyTorch's default initialization.

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
        # A three-layer MLP, not an embedding: it computes ``MaskPrediction.mask_embed``.
        self.mask_embed = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))

    def forward(self, features: PixelFeatures) -> list[MaskPrediction]:
        """Return all predictions in the order of the layers; training supervises every one."""
        return [
            MaskPrediction(self.class_embed(state), mask_embed)
            for state, mask_embed in self._decode(features)
        ]

    def predict(self, features: PixelFeatures) -> MaskPrediction:
        """Return the last prediction, without the class logits of the others."""
        state, mask_embed = self._decode(features)[-1]
        return MaskPrediction(self.class_embed(state), mask_embed)

    def _decode(self, features: PixelFeatures) -> list[tuple[Tensor, Tensor]]:
        """Return query state and mask embedding, each ``(B, Q, C)``, of every prediction."""
        keys, values = self._keys_and_values(features.memory)
        with torch.no_grad():  # once per level: they serve the attention masks only
            mask_features = upcast_half(features.mask_features)
            pooled = [resize_bilinear(mask_features, x.shape[-2:]) for x in features.memory]
        x = self.query_feat.weight.expand(len(mask_features), -1, -1)
        outputs = [self._normalize_and_embed(x)]
        for index, layer in enumerate(self.layers):
            level = index % self.config.num_levels
            may_attend = attention_mask(outputs[-1][1], pooled[level])
            args = (x, self.query_embed.weight, keys[level], values[level], may_attend)
            # Activation checkpointing, if on, saves memory and changes no result.
            x = run_layer(layer, *args, checkpointing=self.config.checkpointing)
            outputs.append(self._normalize_and_embed(x))
        return outputs

    def _normalize_and_embed(self, x: Float[Tensor, 'B Q C']) -> tuple[Tensor, Tensor]:
        """Return the normalized state and its mask embedding; the next layer takes ``x`` itself."""
        state = self.norm(x)
        first, second, last = self.mask_embed
        return state, last(F.relu(second(F.relu(first(state)))))

    def _keys_and_values(self, memory: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tokens ``(B, S, C)`` of each level: values, and keys with their positions."""
        channels, num_levels = self.config.channels, self.config.num_levels
        if len(memory) != num_levels:
            raise ValueError(
                f'the decoder was built for {num_levels} levels, the pixel decoder gave '
                f'{len(memory)}'
            )
        keys, values = [], []
        for x, embed in zip(memory, self.level_embed.weight, strict=True):
            position = sine_encoding(x.shape[-2:], channels, device=x.device, dtype=x.dtype)
            values.append(x.flatten(2).transpose(1, 2) + embed)
            keys.append(values[-1] + position.flatten(1).T)
        return keys, values
