"""Mask2Former in pure PyTorch: what the paper says, independent of any framework."""

from mmseg_m2f.core.config import (
    CompatConfig,
    DecoderConfig,
    PixelDecoderConfig,
    PointConfig,
    PostprocessConfig,
)
from mmseg_m2f.core.criterion import (
    LossTerms,
    MaskClassificationLoss,
    count_matched,
    count_targets,
)
from mmseg_m2f.core.decoder import MaskedAttentionDecoder
from mmseg_m2f.core.deform_attn import MSDeformAttn
from mmseg_m2f.core.layers import init_xavier_normal
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
from mmseg_m2f.core.postprocess import (
    resize_masks,
    restore_masks,
    to_original,
)
from mmseg_m2f.core.postprocess_instance import Instances, instances
from mmseg_m2f.core.postprocess_panoptic import Panoptic, panoptic
from mmseg_m2f.core.postprocess_semantic import (
    semantic_labels,
    semantic_only_labels,
    semantic_scores,
)
from mmseg_m2f.core.structures import (
    ImageGeometry,
    MaskPrediction,
    MaskTarget,
    Match,
    PixelFeatures,
    mask_logits,
    upcast_half,
)
from mmseg_m2f.core.targets import (
    WrongLabelError,
    check_labels,
    check_segments,
    foreground_targets,
    instance_target,
    label_map_targets,
    pad_target,
    segment_target,
    without_empty,
)
