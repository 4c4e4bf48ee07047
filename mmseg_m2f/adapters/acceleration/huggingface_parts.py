"""Our parts in the shape of Hugging Face's model: its settings, its parameters by our names."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import Linear
from torch.nn import functional as F

from mmseg_m2f import core
from mmseg_m2f.adapters.acceleration.parts import check_modules, the_same
from mmseg_m2f.adapters.acceleration.twin import CannotAccelerateError
from mmseg_m2f.checkpoints import from_huggingface

PIXEL_DECODER = 'model.pixel_level_module.decoder'
DECODER = 'model.transformer_module'
CLASSIFIER = 'class_predictor'
_KNOWN = {
    f'transformers.Mask2Former{name}'
    for name in (
        'Attention',
        'MLPPredictionHead',
        'MaskPredictor',
        'MaskedAttentionDecoder',
        'MaskedAttentionDecoderLayer',
        'PixelDecoder',
        'PixelDecoderEncoderLayer',
        'PixelDecoderEncoderMultiscaleDeformableAttention',
        'PixelDecoderEncoderOnly',
        'PredictionBlock',
        'SinePositionEmbedding',
        'TransformerModule',
    )
}
_PROJECTIONS = ('q_proj', 'k_proj', 'v_proj')


def stock_parts(model: Any) -> dict[str, Any]:
    """What is to be swapped, by its path in the model.

    Raises:
        CannotAccelerateError: a module or a setting that our parts do not have.
    """
    stock = {path: model.get_submodule(path) for path in (PIXEL_DECODER, DECODER, CLASSIFIER)}
    check_modules(stock, _KNOWN)
    _check_settings(stock[PIXEL_DECODER], stock[DECODER])
    return stock


class SplitAttention(nn.Module):
    """`core.layers.Attention` with a layer for each of its three projections."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Linear(channels, channels) for _ in range(4)
        )

    def forward(
        self,
        query: Float[Tensor, 'B Q C'],
        key: Float[Tensor, 'B S C'],
        value: Float[Tensor, 'B S C'],
        may_attend: Bool[Tensor, 'B 1 Q S'] | None = None,
    ) -> Float[Tensor, 'B Q C']:
        """Attend from ``query`` to ``value``; ``may_attend`` is True where attention is allowed."""
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Parts(nn.Module):
    """Our network, with its self-attention's projections as apart as theirs, and our losses."""

    def __init__(
        self,
        in_channels: Sequence[int],
        pixel_config: core.PixelDecoderConfig,
        decoder_config: core.DecoderConfig,
        points: core.PointConfig,
        mode: str,
    ) -> None:
        super().__init__()
        self.pixel_decoder = core.MSDeformAttnPixelDecoder(in_channels, pixel_config)
        self.decoder = core.MaskedAttentionDecoder(decoder_config)
        for layer in self.decoder.layers:
            layer.self_attn = SplitAttention(decoder_config.channels, decoder_config.num_heads)
        self.costs = (core.ClassCost(), core.PointMaskCost(), core.PointDiceCost())
        self.matcher = core.HungarianMatcher(self.costs, points.num_points, mode)
        self.criterion = core.MaskClassificationLoss(
            core.ClassLoss(decoder_config.num_classes), points=core.PointSampler(points)
        )


def build_parts(model: Any, stock: dict[str, Any], mode: str) -> Parts:
    """Ours with the settings of theirs; ``mode`` is that of the matcher's points.

    Raises:
        CannotAccelerateError: sizes that our parts cannot have.
    """
    criterion = model.criterion
    try:
        points = core.PointConfig(
            num_points=criterion.num_points,
            oversample_ratio=criterion.oversample_ratio,
            importance_ratio=criterion.importance_sample_ratio,
        )
        in_channels = list(stock[PIXEL_DECODER].feature_channels)
        return Parts(
            in_channels, _pixel_config(stock[PIXEL_DECODER]), _decoder_config(stock), points, mode
        )
    except ValueError as error:
        raise CannotAccelerateError(str(error)) from None


def _check_settings(pixel_decoder: Any, module: Any) -> None:
    num_maps = pixel_decoder.num_fpn_levels + pixel_decoder.num_feature_levels
    if num_maps != len(pixel_decoder.feature_channels):
        raise CannotAccelerateError(
            f'common_stride leaves {num_maps} of the {len(pixel_decoder.feature_channels)} maps of '
            'the backbone to the pixel decoder, ours takes all'
        )
    for layer in module.decoder.layers:
        if layer.pre_norm:
            raise CannotAccelerateError('pre_norm = True, our decoder has its norms after')
    if not (len(pixel_decoder.encoder.layers) and len(module.decoder.layers)):
        raise CannotAccelerateError('a decoder without layers tells no settings')


def _pixel_config(pixel_decoder: Any) -> core.PixelDecoderConfig:
    layers = pixel_decoder.encoder.layers
    groups = [m.num_groups for m in pixel_decoder.modules() if isinstance(m, nn.GroupNorm)]
    return core.PixelDecoderConfig(
        channels=layers[0].embed_dim,
        num_layers=len(layers),
        num_heads=the_same('n_heads', [layer.self_attn.n_heads for layer in layers]),
        num_points=the_same('n_points', [layer.self_attn.n_points for layer in layers]),
        num_levels=pixel_decoder.num_feature_levels,
        ffn_dim=layers[0].fc1.out_features,
        norm_groups=the_same('num_groups', groups),
    )


def _decoder_config(stock: dict[str, Any]) -> core.DecoderConfig:
    module = stock[DECODER]
    layers = module.decoder.layers
    heads = [part.num_heads for layer in layers for part in (layer.self_attn, layer.cross_attn)]
    return core.DecoderConfig(
        num_classes=stock[CLASSIFIER].out_features - 1,
        channels=module.queries_features.embedding_dim,
        num_queries=module.queries_features.num_embeddings,
        num_layers=len(layers),
        num_heads=the_same('num_heads', heads),
        num_levels=module.num_feature_levels,
        ffn_dim=layers[0].fc1.out_features,
    )


def shared_weights(stock: dict[str, Any]) -> dict[str, Tensor]:
    """Their parameters by our names: the key map of the files, but for the split projections.

    Raises:
        CannotAccelerateError: a parameter that the map does not know.
    """
    named = {
        f'{root}.{name}': value
        for root, top in stock.items()
        for name, value in top.named_parameters()
    }
    layers = f'{DECODER}.decoder.layers.'
    apart = {
        key: value
        for key, value in named.items()
        if key.startswith(layers) and key.split('.')[-2] in _PROJECTIONS
    }
    try:
        ours = from_huggingface({k: v for k, v in named.items() if k not in apart}, 'decode_head')
    except ValueError as error:
        raise CannotAccelerateError(str(error)) from None
    ours = {key.removeprefix('decode_head.'): value for key, value in ours.items()}
    for key, value in apart.items():
        ours[f'decoder.layers.{key.removeprefix(layers)}'] = value
    return ours
