"""Narrow models with our heads, which build in a moment, and a photo for them."""

from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

PHOTO = Path(__file__).parents[2] / 'data/tiny/coco/img/train/000000000436.jpg'
CHANNELS = [8, 16, 32, 64]
# Settings of a data preprocessor.
NORMALIZED = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'bgr_to_rgb': True}


def segmentor(num_classes: int = 3, num_queries: int = 10, depth: int = 18, **decoder: int) -> dict:
    return {
        'type': 'EncoderDecoder',
        'data_preprocessor': {'type': 'SegDataPreProcessor'},
        'backbone': {'type': 'ResNet', 'depth': depth, 'stem_channels': 8, 'base_channels': 8},
        'decode_head': {
            'type': 'mmseg_m2f.Mask2FormerHead',
            'num_classes': num_classes,
            'num_queries': num_queries,
            'in_channels': CHANNELS,
            'pixel_decoder': {'channels': 32, 'num_layers': 1, 'ffn_dim': 16},
            'decoder': {'num_layers': 2, 'ffn_dim': 16, **decoder},
            'losses': {'points': {'num_points': 16}},
        },
        'test_cfg': {'mode': 'whole'},
    }


def build(**changes: int) -> nn.Module:
    init_default_scope('mmseg')
    return MODELS.build(segmentor(**changes))


def detector() -> dict:
    model = segmentor()
    head = {**model.pop('decode_head'), 'type': 'mmseg_m2f.Mask2FormerUniversalHead'}
    return {
        'type': 'mmseg_m2f.Mask2Former',
        'data_preprocessor': {'type': 'DetDataPreprocessor'},
        'backbone': model['backbone'],
        'panoptic_head': head,
    }


def photo(size: tuple[int, int] = (128, 160)) -> dict[str, Any]:
    """Return a batch of one real image, as small as it may be."""
    pixels = cv2.resize(cv2.imread(str(PHOTO)), size[::-1], interpolation=cv2.INTER_AREA)
    sample = BaseDataElement(metainfo={'img_shape': size, 'ori_shape': size})
    return {'inputs': [torch.from_numpy(pixels).permute(2, 0, 1)], 'data_samples': [sample]}
