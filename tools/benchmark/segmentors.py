"""A semantic segmentor with our head and one with mmseg's own, of equal structure and weights."""

from pathlib import Path

import mmseg
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from mmseg_m2f.checkpoints import to_theirs

MMSEG_CONFIG = '.mim/configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'


def build_ours(depth: int, num_classes: int, num_queries: int = 100) -> nn.Module:
    """Our head on a ResNet, everything else as the paper has it."""
    model = _mmseg_model(depth, num_classes, num_queries)
    model.decode_head = {
        'type': 'mmseg_m2f.Mask2FormerHead',
        'num_classes': num_classes,
        'in_channels': model.decode_head.in_channels,
        'num_queries': num_queries,
    }
    return MODELS.build(model)


def build_mmseg(depth: int, num_classes: int, num_queries: int = 100) -> nn.Module:
    """The head that mmseg itself has, by its own configuration; it needs mmdet."""
    return MODELS.build(_mmseg_model(depth, num_classes, num_queries))


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give mmseg's model the weights of ours."""
    theirs.load_state_dict(to_theirs(ours.state_dict(), 'mmseg'))


def _mmseg_model(depth: int, num_classes: int, num_queries: int) -> ConfigDict:
    init_default_scope('mmseg')
    model = Config.fromfile(Path(mmseg.__file__).parent / MMSEG_CONFIG).model
    # Frozen statistics and no download: both models get the same backbone anyway.
    model.backbone.update(
        depth=depth,
        norm_cfg={'type': 'BN', 'requires_grad': False},
        norm_eval=True,
        init_cfg=None,
    )
    head = model.decode_head
    head.update(num_classes=num_classes, num_queries=num_queries)
    head.loss_cls.class_weight = [1.0] * num_classes + [0.1]
    if depth < 50:
        head.in_channels = [channels // 4 for channels in head.in_channels]
    model.data_preprocessor.update(size=None, size_divisor=32)
    return model
