"""A built head of MMDetection or MMSegmentation, described as its config would have it."""

from typing import Any

from torch import nn

from mmseg_m2f.adapters.acceleration.parts import kind_of, the_same

KNOWN = {
    'mmcv.Conv2d',
    'mmcv.ConvModule',
    'mmcv.Dropout',
    'mmcv.FFN',
    'mmcv.Linear',
    'mmcv.MultiScaleDeformableAttention',
    'mmcv.MultiheadAttention',
    'mmdet.DeformableDetrTransformerEncoderLayer',
    'mmdet.MSDeformAttnPixelDecoder',
    'mmdet.Mask2FormerTransformerDecoder',
    'mmdet.Mask2FormerTransformerDecoderLayer',
    'mmdet.Mask2FormerTransformerEncoder',
    'mmdet.SinePositionalEncoding',
    'mmengine.ModuleList',
    'mmengine.Sequential',
}
# What is swapped; the losses are modules too, and are described alone.
NETWORK = (
    'pixel_decoder',
    'transformer_decoder',
    'decoder_input_projs',
    'decoder_positional_encoding',
    'query_embed',
    'query_feat',
    'level_embed',
    'cls_embed',
    'mask_embed',
)
_SETTINGS = {
    'mmdet.CrossEntropyLoss': (
        'use_sigmoid',
        'use_mask',
        'reduction',
        'class_weight',
        'ignore_index',
        'avg_non_ignore',
        'loss_weight',
    ),
    'mmdet.DiceLoss': (
        'use_sigmoid',
        'activate',
        'reduction',
        'naive_dice',
        'eps',
        'loss_weight',
    ),
    'mmdet.ClassificationCost': ('weight',),
    'mmdet.CrossEntropyLossCost': ('use_sigmoid', 'weight'),
    'mmdet.DiceCost': ('pred_act', 'eps', 'naive_dice', 'weight'),
    'mmdet.SinePositionalEncoding': (
        'num_feats',
        'temperature',
        'normalize',
        'scale',
        'eps',
        'offset',
    ),
}


def network_settings(head: Any) -> dict[str, Any]:
    """Stock settings of the network, read off its modules and not off a config of before."""
    pixel_decoder, channels = head.pixel_decoder, head.cls_embed.in_features
    num_levels = head.level_embed.num_embeddings
    maps = [*pixel_decoder.lateral_convs, *reversed(pixel_decoder.input_convs)]
    return {
        'in_channels': [block.conv.in_channels for block in maps],
        'feat_channels': channels,
        'out_channels': pixel_decoder.mask_feature.out_channels,
        'num_queries': head.query_feat.num_embeddings,
        'num_transformer_feat_level': num_levels,
        'positional_encoding': _position(head.decoder_positional_encoding),
        'pixel_decoder': _pixel_decoder(pixel_decoder),
        'transformer_decoder': _decoder(head.transformer_decoder),
    }


def loss_settings(head: Any) -> dict[str, Any]:
    """Stock settings of the losses, the matching and the points."""
    return {
        **{name: _typed(getattr(head, name)) for name in ('loss_cls', 'loss_mask', 'loss_dice')},
        'train_cfg': {
            'num_points': head.num_points,
            'oversample_ratio': head.oversample_ratio,
            'importance_sample_ratio': head.importance_sample_ratio,
            'sampler': {'type': kind_of(head.sampler)},
            'assigner': {
                'type': kind_of(head.assigner),
                'match_costs': [_typed(cost) for cost in head.assigner.match_costs],
            },
        },
    }


def _typed(part: Any) -> dict[str, Any]:
    kind = kind_of(part)
    return {'type': kind, **{name: getattr(part, name) for name in _SETTINGS.get(kind, ())}}


def _position(encoding: Any) -> dict[str, Any]:
    settings = _typed(encoding)
    del settings['type']  # the heads' configs have none
    return settings


def _pixel_decoder(decoder: Any) -> dict[str, Any]:
    groups = [module.num_groups for module in decoder.modules() if isinstance(module, nn.GroupNorm)]
    layers = decoder.encoder.layers
    return {
        'type': kind_of(decoder),
        'num_outs': decoder.num_outs,
        'norm_cfg': {'type': 'GN', 'num_groups': the_same('num_groups', groups)},
        'positional_encoding': _position(decoder.postional_encoding),
        'encoder': {
            'num_layers': len(layers),
            'layer_cfg': {
                'self_attn_cfg': _deformable_attention([layer.self_attn for layer in layers]),
                'ffn_cfg': _feed_forward([layer.ffn for layer in layers]),
            },
        },
    }


def _deformable_attention(parts: list[Any]) -> dict[str, Any]:
    names = ('embed_dims', 'num_heads', 'num_levels', 'num_points', 'batch_first')
    settings = {name: the_same(name, [getattr(part, name) for part in parts]) for name in names}
    return {**settings, 'dropout': 0.0}  # checked where all modules are


def _decoder(decoder: Any) -> dict[str, Any]:
    layers = decoder.layers
    return {
        'num_layers': len(layers),
        'layer_cfg': {
            'self_attn_cfg': _attention([layer.self_attn for layer in layers]),
            'cross_attn_cfg': _attention([layer.cross_attn for layer in layers]),
            'ffn_cfg': _feed_forward([layer.ffn for layer in layers]),
        },
    }


def _attention(parts: list[Any]) -> dict[str, Any]:
    names = ('embed_dims', 'num_heads', 'batch_first')
    return {name: the_same(name, [getattr(part, name) for part in parts]) for name in names}


def _feed_forward(parts: list[Any]) -> dict[str, Any]:
    names = ('embed_dims', 'feedforward_channels', 'num_fcs', 'add_identity')
    return {name: the_same(name, [getattr(part, name) for part in parts]) for name in names}
