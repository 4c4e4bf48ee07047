"""Our models with the backbones of the published names."""

from collections.abc import Sequence

import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from tests.checkpoints.published_names import (
    NUM_CLASSES,
    NUM_QUERIES,
    R50_CHANNELS,
    SWIN_T_CHANNELS,
    SWIN_T_DEPTHS,
    SWIN_T_HEADS,
    WINDOW,
)

BACKBONE_CONFIGS = {
    'r50': {'type': 'ResNet', 'depth': 50, 'norm_cfg': {'type': 'BN'}, 'norm_eval': True},
    'swin-t': {
        'type': 'SwinTransformer',
        'embed_dims': SWIN_T_CHANNELS[0],
        'depths': SWIN_T_DEPTHS,
        'num_heads': SWIN_T_HEADS,
        'window_size': WINDOW,
    },
}
IN_CHANNELS = {'r50': R50_CHANNELS, 'swin-t': SWIN_T_CHANNELS}


def build_backbone(name: str, **changes: object) -> nn.Module:
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    return MODELS.build({**BACKBONE_CONFIGS[name], **changes})


def build_segmentor(backbone: str) -> nn.Module:
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    head = {
        'type': 'mmseg_m2f.Mask2FormerHead',
        'num_classes': NUM_CLASSES,
        'in_channels': list(IN_CHANNELS[backbone]),
        'num_queries': NUM_QUERIES,
    }
    return MODELS.build(
        {
            'type': 'mmseg.EncoderDecoder',
            'backbone': BACKBONE_CONFIGS[backbone],
            'decode_head': head,
        }
    ).eval()


@torch.no_grad()
def last_logits(segmentor: nn.Module, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Class logits and mask logits of the last prediction, from the backbone's maps."""
    from mmseg_m2f.core import mask_logits

    head = segmentor.decode_head
    features = head.pixel_decoder(maps)
    prediction = head.decoder.predict(features)
    return prediction.class_logits, mask_logits(prediction.mask_embed, features.mask_features)
