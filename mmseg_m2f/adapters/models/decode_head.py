"""Mask2Former as a decode head of MMSegmentation's ``EncoderDecoder``, and our form of that.

The head keeps mmseg's protocol without inheriting from mmseg or mmdet: the segmentor calls
``loss``, ``predict`` and ``forward`` and reads ``num_classes``, ``out_channels``,
``align_corners`` and ``threshold``.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_m2f import core
from mmseg_m2f.adapters.models.config import HeadConfig, compat_config
from mmseg_m2f.adapters.models.head import MaskHead, reject_unknown
from mmseg_m2f.adapters.models.mmcv_attention import import_failure
from mmseg_m2f.adapters.models.parts import PartConfig
from mmseg_m2f.registry import MODELS


@MODELS.register_module()
class Mask2FormerHead(MaskHead):
    """Pixel decoder, decoder, matcher and losses, each replaceable from the config.

    Args:
        num_classes: K, without no-object. With 1 the label maps hold 0 (background) and 1.
        in_channels: channels of the backbone's maps, stride 4 first.
        num_queries: Q.
        pixel_decoder, decoder, matcher: settings of the parts; ``type`` replaces a part.
        losses: ``cls``, ``mask``, ``dice`` and ``points``, each the settings of a part. The
            matcher's costs and points follow the losses unless set.
        class_weight: K numbers, or K + 1 with no-object last; default all 1.
        no_object_weight: weight of no-object in the class loss.
        compat: switches to what MMDetection does otherwise than the official code, see
            `core.CompatConfig`.
        ignore_index: label of pixels that belong to no class.
        align_corners: of the segmentor's final resize; the official code uses False throughout.
        init_cfg: MMEngine's; the parts initialise themselves as the official code does.

    Raises:
        ValueError: a key that no part knows, or sizes that do not fit together.
    """

    def __init__(  # noqa: PLR0913 - they are the keys of the config
        self,
        num_classes: int,
        in_channels: Sequence[int],
        num_queries: int = 100,
        pixel_decoder: PartConfig | None = None,
        decoder: PartConfig | None = None,
        matcher: PartConfig | None = None,
        losses: Mapping[str, PartConfig] | None = None,
        class_weight: Sequence[float] | None = None,
        no_object_weight: float = 0.1,
        compat: Mapping[str, Any] | None = None,
        ignore_index: int = 255,
        align_corners: bool = False,
        init_cfg: dict | None = None,
        **unknown: Any,
    ) -> None:
        reject_unknown(Mask2FormerHead, unknown)
        config = HeadConfig(
            num_classes=num_classes,
            in_channels=in_channels,
            num_queries=num_queries,
            pixel_decoder=pixel_decoder or {},
            decoder=decoder or {},
            matcher=matcher or {},
            losses=losses or {},
            class_weight=class_weight,
            no_object_weight=no_object_weight,
            compat=compat_config(compat),
        )
        own = {'ignore_index': ignore_index, 'align_corners': align_corners}
        super().__init__(config, own, init_cfg)
        self.out_channels = num_classes
        self.ignore_index, self.align_corners = ignore_index, align_corners
        # The segmentor compares sigmoid(score) with this for a single class: score > 1/2.
        self.threshold = 1 / (1 + math.exp(-0.5))
        _warn_of_ignored(self.compat)

    def loss(
        self, inputs: Sequence[Tensor], batch_data_samples: Sequence[Any], train_cfg: Any = None
    ) -> dict[str, Tensor]:
        """Losses of all predictions: ``loss_cls`` ... of the last, ``d{i}.loss_cls`` ... before.

        Raises:
            ValueError: a label that is neither a class nor ``ignore_index``, with its file.
            NonFinitePredictionError: NaN in a prediction, with the image and the learning rate.
        """
        targets = self._targets(batch_data_samples)
        return self._losses(inputs, targets, batch_data_samples)

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: Sequence[dict], test_cfg: Any = None
    ) -> Tensor:
        """Semantic scores ``(B, K, H, W)`` at the size of the network's input (or window).

        The scores are sums of probabilities in ``[0, Q]``, not logits: no softmax belongs on them.
        """
        size = _input_size(batch_img_metas[0], test_cfg)
        class_logits, mask_logits = self(inputs)
        scores = [
            _scores(logits, masks, size)
            for logits, masks in zip(class_logits, mask_logits, strict=True)
        ]
        # Stacking a single image would copy it.
        return torch.stack(scores) if len(scores) > 1 else scores[0][None]

    def _targets(self, samples: Sequence[Any]) -> list[core.MaskTarget]:
        label_maps = [sample.gt_sem_seg.data.squeeze(0) for sample in samples]
        try:
            if self.num_classes == 1:
                return core.foreground_targets(label_maps, self.ignore_index)
            return core.label_map_targets(label_maps, self.num_classes, self.ignore_index)
        except core.WrongLabelError as error:
            metainfo = samples[error.image].metainfo
            source = metainfo.get('seg_map_path', 'an annotation without seg_map_path')
            raise ValueError(f'{source}: {error}') from None


def _scores(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    if torch.is_grad_enabled():  # asked for by attribution, distillation and the like
        resize = functools.partial(core.resize_masks, size=size)
        return core.semantic_scores(class_logits, mask_logits, resize)
    return core.input_scores(class_logits, mask_logits, size)


@MODELS.register_module(name='SemanticSegmentor')
def build_segmentor(**keys: Any) -> nn.Module:
    """The segmentor; its module imports mmseg, which the head does without.

    Raises:
        ImportError: mmseg is not there, with what to install.
        MissingOperatorsError: mmseg is there and lacks mmcv's operators.
    """
    try:
        from mmseg_m2f.adapters.models.segmentor import SemanticSegmentor
    except (ImportError, AssertionError) as error:  # mmseg asserts the version of mmcv
        raise import_failure(
            'MMSegmentation',
            error,
            f'mmseg_m2f.SemanticSegmentor is a segmentor of MMSegmentation, which cannot be '
            f'imported ({error}). Install it: pip install onedl-mmsegmentation (onedl stack) or '
            'pip install mmsegmentation (upstream); mmseg_m2f.Mask2Former of MMDetection does '
            'without.',
        ) from error
    return SemanticSegmentor(**keys)


def _warn_of_ignored(compat: core.CompatConfig) -> None:
    if compat.panoptic_mask_intersection:
        return
    print_log(
        'compat.panoptic_mask_intersection is ignored: a decode head of MMSegmentation gives '
        'semantic results only.',
        logger='current',
        level=logging.WARNING,
    )


def _input_size(meta: Mapping[str, Any], test_cfg: Mapping[str, Any] | None) -> tuple[int, int]:
    """Size of the image or window the backbone saw.

    mmseg's sliding loop writes the window's size into ``img_shape`` of the first image and
    leaves ``pad_shape``, the whole padded image, alone.
    """
    is_window = (test_cfg or {}).get('mode', 'whole') == 'slide'
    shape = meta['img_shape'] if is_window else meta.get('pad_shape', meta['img_shape'])
    return int(shape[0]), int(shape[1])
