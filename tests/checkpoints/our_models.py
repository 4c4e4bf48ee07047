"""Our models with the backbones of the published names."""

from mmengine.registry import init_default_scope
from torch import nn

from tests.checkpoints import published_names as published

BACKBONES = {
    'r50': {'type': 'ResNet', 'depth': 50, 'norm_cfg': {'type': 'BN'}, 'norm_eval': True},
    'swin-t': {
        'type': 'SwinTransformer',
        'embed_dims': published.SWIN_T_CHANNELS[0],
        'depths': published.SWIN_T_DEPTHS,
        'num_heads': published.SWIN_T_HEADS,
        'window_size': published.WINDOW,
    },
}


def build_backbone(name: str, **changes: object) -> nn.Module:
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    return MODELS.build({**BACKBONES[name], **changes})


def build_segmentor(backbone: str, **head: object) -> nn.Module:
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    sizes = {'num_classes': published.NUM_CLASSES, 'num_queries': published.NUM_QUERIES}
    return MODELS.build(
        {
            'type': 'mmseg_m2f.SemanticSegmentor',
            'backbone': BACKBONES[backbone],
            'decode_head': {'type': 'mmseg_m2f.Mask2FormerHead', **sizes, **head},
        }
    ).eval()
