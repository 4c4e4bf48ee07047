"""Mask2Former in pure PyTorch: what the paper says, independent of any framework."""

from mmseg_m2f.core.config import DecoderConfig, PixelDecoderConfig, PointConfig
from mmseg_m2f.core.criterion import LossTerms, MaskClassificationLoss
from mmseg_m2f.core.decoder import MaskedAttentionDecoder
from mmseg_m2f.core.deform_attn import MSDeformAttn
from mmseg_m2f.core.losses import ClassLoss, PointDiceLoss, PointMaskLoss, RowLoss
from mmseg_m2f.core.matching import (
    ClassCost,
    HungarianMatcher,
    NonFinitePredictionError,
    PointDiceCost,
    PointMaskCost,
)
from mmseg_m2f.core.pixel_decoder import MSDeformAttnPixelDecoder
from mmseg_m2f.core.points import PointSampler
from mmseg_m2f.core.postprocess import semantic_scores
from mmseg_m2f.core.structures import (
    MaskPrediction,
    MaskTarget,
    Match,
    PixelFeatures,
    at_least_float32,
    mask_logits,
)
from mmseg_m2f.core.targets import foreground_target, label_map_target

__all__ = [
    'ClassCost',
    'ClassLoss',
    'DecoderConfig',
    'HungarianMatcher',
    'LossTerms',
    'MSDeformAttn',
    'MSDeformAttnPixelDecoder',
    'MaskClassificationLoss',
    'MaskPrediction',
    'MaskTarget',
    'MaskedAttentionDecoder',
    'Match',
    'NonFinitePredictionError',
    'PixelDecoderConfig',
    'PixelFeatures',
    'PointConfig',
    'PointDiceCost',
    'PointDiceLoss',
    'PointMaskCost',
    'PointMaskLoss',
    'PointSampler',
    'RowLoss',
    'at_least_float32',
    'foreground_target',
    'label_map_target',
    'mask_logits',
    'semantic_scores',
]
