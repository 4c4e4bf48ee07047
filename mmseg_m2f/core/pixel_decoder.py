"""Backbone features to per-pixel embeddings and decoder memory (paper section 3.2.2, appendix)."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmseg_m2f.core.config import PixelDecoderConfig
from mmseg_m2f.core.deform_attn import LevelShapes, MSDeformAttn, pixel_centres
from mmseg_m2f.core.layers import FeedForward, init_c2_xavier, run_layer, sine_encoding
from mmseg_m2f.core.maps import Conv2d, ConvNorm, in_order_of, pass_on, resize_maps
from mmseg_m2f.core.structures import PassedOn, PixelFeatures, at_least_float32

AttentionFactory = Callable[[], nn.Module]


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
        """Positions are added to the queries only, never to the values."""
        attended = self.attn(tokens + position, tokens, reference_points, level_shapes)
        tokens = self.norm1(tokens + attended)
        return self.norm2(self.ffn(tokens))


class MSDeformAttnPixelDecoder(nn.Module):
    """Deformable encoder over the coarse maps, feature pyramid down to stride 4.

    The whole forward pass runs in float32 whatever the autocast, as in the official code, unless
    ``config.mixed_precision`` says otherwise.

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
        attention: AttentionFactory | None = None,
    ) -> None:
        super().__init__()
        config = config or PixelDecoderConfig()
        if len(in_channels) < config.num_levels:
            raise ValueError(
                f'the pixel decoder attends to {config.num_levels} levels, in_channels names only '
                f'{len(in_channels)} maps: {list(in_channels)}'
            )
        self.config = config
        self.channels, self.num_levels = config.channels, config.num_levels
        self.in_channels = tuple(in_channels)
        num_lateral = len(in_channels) - config.num_levels
        coarse_first = list(reversed(in_channels))
        self.input_proj = nn.ModuleList(
            self._project(c, bias=True) for c in coarse_first[: config.num_levels]
        )
        self.level_embed = nn.Parameter(torch.randn(config.num_levels, config.channels))
        make_attention = attention or self._default_attention
        self.layers = nn.ModuleList(
            EncoderLayer(make_attention(), config.channels, config.ffn_dim)
            for _ in range(config.num_layers)
        )
        # lateral[j] and output[j] belong to in_channels[j]: the finest map has index 0.
        self.lateral = nn.ModuleList(self._project(c) for c in in_channels[:num_lateral])
        self.output = nn.ModuleList(
            self._project(config.channels, kernel_size=3, activate=True) for _ in range(num_lateral)
        )
        self.mask_proj = Conv2d(config.channels, config.channels, 1)
        self._init_convolutions()

    def _project(
        self, in_channels: int, kernel_size: int = 1, *, bias: bool = False, activate: bool = False
    ) -> ConvNorm:
        return ConvNorm(
            in_channels,
            self.config.channels,
            kernel_size,
            norm_groups=self.config.norm_groups,
            bias=bias,
            activate=activate,
        )

    def _default_attention(self) -> MSDeformAttn:
        c = self.config
        return MSDeformAttn(c.channels, c.num_heads, c.num_levels, c.num_points)

    def _init_convolutions(self) -> None:
        for convolution in _convolutions(self.input_proj):
            nn.init.xavier_uniform_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        for convolution in _convolutions([*self.lateral, *self.output]):
            init_c2_xavier(convolution)
        init_c2_xavier(self.mask_proj)

    def forward(self, features: Sequence[Tensor]) -> PixelFeatures:
        """Decode the backbone's maps.

        Args:
            features: maps ``(B, in_channels[i], h_i, w_i)``, finest (stride 4) first; a `PassedOn`
                list is empty afterwards.

        Returns:
            ``mask_features (B, C, h, w)`` on the finest map and ``num_levels`` maps of memory,
            coarsest first, in float32 (float64 for float64 input).
        """
        if len(features) != len(self.in_channels):
            raise ValueError(
                f'the pixel decoder was built for {len(self.in_channels)} feature maps '
                f'(in_channels {list(self.in_channels)}), got {len(features)}'
            )
        mixed, device_type = self.config.mixed_precision, features[0].device.type
        own = list(features) if mixed else [at_least_float32(feature) for feature in features]
        if isinstance(features, PassedOn):
            features.clear()
        if mixed:
            return self._decode(own)
        with torch.autocast(device_type, enabled=False):
            return self._decode(own)

    def _decode(self, own: list[Tensor]) -> PixelFeatures:
        """Takes the maps out of the list, coarsest first, so that each lives until it is used."""
        memory = self._encode(own)
        mask_features = self._pyramid(own, memory[-1])
        return PixelFeatures(at_least_float32(mask_features), tuple(memory))

    def _encode(self, own: list[Tensor]) -> list[Tensor]:
        maps = [project(own.pop()) for project in self.input_proj]
        level_shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # (B, S, C)
        del maps
        # The residual stream and, by its type, the locations: in bfloat16 these lose up to a
        # quarter of a pixel.
        tokens = at_least_float32(tokens)
        position = torch.cat(
            [
                self._position(shape, tokens).flatten(1).T + embed
                for shape, embed in zip(level_shapes, self.level_embed, strict=True)
            ]
        )  # (S, C)
        reference_points = pixel_centres(level_shapes, device=tokens.device, dtype=tokens.dtype)
        for layer in self.layers:
            args = (tokens, position, reference_points, level_shapes)
            tokens = run_layer(layer, *args, checkpointing=self.config.checkpointing)
        per_level = tokens.split([height * width for height, width in level_shapes], dim=1)
        return [
            x.transpose(1, 2).unflatten(-1, shape)
            for x, shape in zip(per_level, level_shapes, strict=True)
        ]

    def _position(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        return sine_encoding(shape, self.channels, device=like.device, dtype=like.dtype)

    def _pyramid(self, own: list[Tensor], finest: Tensor) -> Tensor:
        """Add the maps finer than the encoder's levels top-down; project to mask features."""
        for index in reversed(range(len(self.lateral))):
            lateral = pass_on(own, self.lateral[index])
            size = (lateral.shape[-2], lateral.shape[-1])
            # It is a view of tokens, the channels last; sums of two orders of memory are slow.
            finest = resize_maps(in_order_of(finest, lateral), size)
            # In the place of what nobody needs again: the maps are the largest of the network.
            summed = [lateral + finest if torch.is_grad_enabled() else finest.add_(lateral)]
            del lateral, finest
            finest = pass_on(summed, self.output[index])
        return self.mask_proj(finest)


def _convolutions(blocks: Iterable[nn.Module]) -> list[nn.Conv2d]:
    return [block.conv for block in blocks if isinstance(block, ConvNorm)]
