"""Pixel decoder: backbone maps to mask features and memory (paper section 3.2.2, appendix)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmseg_m2f.core.config import PixelDecoderConfig
from mmseg_m2f.core.deform_attn import LevelShapes, MSDeformAttn, pixel_centers
from mmseg_m2f.core.layers import (
    ConvNorm,
    FeedForward,
    init_c2_xavier,
    resize_bilinear,
    run_layer,
    sine_encoding,
)
from mmseg_m2f.core.structures import PixelFeatures, upcast_half


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each with residual and post-norm."""

    def __init__(self, attention: nn.Module, channels: int, ffn_dim: int) -> None:
        super().__init__()
        self.attn = attention
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, ffn_dim)
        self.norm2 = nn.LayerNorm(channels)

    def forward(
        self,
        tokens: Float[Tensor, 'B S C'],
        position: Float[Tensor, 'S C'],
        reference_points: Float[Tensor, 'S 2'],
        level_shapes: LevelShapes,
    ) -> Float[Tensor, 'B S C']:
        """Update the tokens of all levels; positions are added to the queries, never to the values.

        ``reference_points`` are the tokens' own places ``(x, y)`` in (0, 1), ``level_shapes`` the
        ``(height, width)`` of each level.
        """
        attended = self.attn(tokens + position, tokens, reference_points, level_shapes)
        tokens = self.norm1(tokens + attended)
        return self.norm2(self.ffn(tokens))  # FeedForward adds its own input


class MSDeformAttnPixelDecoder(nn.Module):
    """Deformable encoder over the coarse maps, feature pyramid down to stride 4.

    The whole forward pass runs in float32 whatever the autocast, as in the official code. With
    ``config.mixed_precision`` an autocast of the caller reaches it, but the tokens stay in float32.

    Args:
        in_channels: channels of the backbone's maps, finest (stride 4) first.
        config: sizes; at most as many levels as maps.
        attention: makes one encoder layer's attention, with the call signature and the parameter
            names of ``MSDeformAttn``; default ``MSDeformAttn`` itself.

    Source: official ``modeling/pixel_decoder/msdeformattn.py``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        config: PixelDecoderConfig | None = None,
        attention: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        config = config or PixelDecoderConfig()
        if len(in_channels) < config.num_levels:
            raise ValueError(
                f'the pixel decoder attends to {config.num_levels} levels, in_channels names only '
                f'{len(in_channels)} maps: {list(in_channels)}'
            )
        self.config, self.in_channels = config, tuple(in_channels)
        self.channels, self.num_levels = config.channels, config.num_levels
        num_lateral = len(in_channels) - config.num_levels
        # Convolutions to ``channels`` with group norm.
        block = partial(ConvNorm, channels=config.channels, norm_groups=config.norm_groups)
        input_proj = [block(c, bias=True) for c in reversed(in_channels[num_lateral:])]
        self.input_proj = nn.ModuleList(input_proj)
        self.level_embed = nn.Parameter(torch.randn(config.num_levels, config.channels))
        sizes = (config.channels, config.num_heads, config.num_levels, config.num_points)
        make_attention = attention or partial(MSDeformAttn, *sizes)
        self.layers = nn.ModuleList(
            EncoderLayer(make_attention(), config.channels, config.ffn_dim)
            for _ in range(config.num_layers)
        )
        # lateral[j] and output[j] belong to in_channels[j]: the finest map has index 0.
        lateral = [block(c) for c in in_channels[:num_lateral]]
        output = [block(config.channels, kernel_size=3, activate=True) for _ in lateral]
        self.lateral, self.output = nn.ModuleList(lateral), nn.ModuleList(output)
        self.mask_proj = nn.Conv2d(config.channels, config.channels, 1)
        for projection in input_proj:
            nn.init.xavier_uniform_(projection.conv.weight)
            if projection.conv.bias is not None:
                nn.init.zeros_(projection.conv.bias)
        for conv in [*(part.conv for part in lateral + output), self.mask_proj]:
            init_c2_xavier(conv)  # Detectron2's Kaiming-uniform, zero bias

    def forward(self, features: Sequence[Tensor]) -> PixelFeatures:
        """Decode the backbone's maps.

        Args:
            features: maps ``(B, in_channels[i], h_i, w_i)``, finest (stride 4) first.

        Returns:
            ``mask_features (B, C, h, w)`` on the finest map and ``num_levels`` maps of memory,
            coarsest first, in float32 (float64 for float64 input).
        """
        if len(features) != len(self.in_channels):
            raise ValueError(
                f'the pixel decoder was built for {len(self.in_channels)} feature maps '
                f'(in_channels {list(self.in_channels)}), got {len(features)}'
            )
        if self.config.mixed_precision:
            return self._decode(features)
        with torch.autocast(features[0].device.type, enabled=False):
            return self._decode([upcast_half(x) for x in features])

    def _decode(self, features: Sequence[Tensor]) -> PixelFeatures:
        num_lateral = len(self.lateral)
        memory = self._encode(features[num_lateral:])
        mask_features = self._pyramid(features[:num_lateral], memory[-1])
        return PixelFeatures(upcast_half(mask_features), tuple(memory))

    def _encode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Run the deformable encoder over the tokens of all its levels, coarsest level first."""
        maps = [project(x) for project, x in zip(self.input_proj, reversed(features), strict=True)]
        level_shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # (B, S, C)
        # Under an autocast the projections return half types. The tokens are kept in float32, and
        # so are the reference points, which take their dtype: bfloat16 would move a sampling
        # location by up to a quarter of a pixel.
        tokens = upcast_half(tokens)
        device, dtype = tokens.device, tokens.dtype
        position = torch.cat(
            [
                sine_encoding(shape, self.channels, device=device, dtype=dtype).flatten(1).T + embed
                for shape, embed in zip(level_shapes, self.level_embed, strict=True)
            ]
        )  # (S, C)
        reference_points = pixel_centers(level_shapes, device=device, dtype=dtype)  # (S, 2)
        for layer in self.layers:
            args = (tokens, position, reference_points, level_shapes)
            # Activation checkpointing, if on, saves memory and changes no result.
            tokens = run_layer(layer, *args, checkpointing=self.config.checkpointing)
        per_level = tokens.split([height * width for height, width in level_shapes], dim=1)
        return [
            x.transpose(1, 2).unflatten(-1, shape)
            for x, shape in zip(per_level, level_shapes, strict=True)
        ]

    def _pyramid(self, features: Sequence[Tensor], finest: Tensor) -> Tensor:
        """Add the maps finer than the encoder's levels from coarse to fine; project the result."""
        levels = zip(features, self.lateral, self.output, strict=True)
        for x, lateral, output in reversed(list(levels)):
            finest = output(lateral(x) + resize_bilinear(finest, x.shape[-2:]))
        return self.mask_proj(finest)
