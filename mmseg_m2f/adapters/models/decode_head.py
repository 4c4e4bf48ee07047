"""Mask2Former as a decode head of MMSegmentation's ``EncoderDecoder``.

The head follows mmseg's protocol without inheriting from mmseg or mmdet: the segmentor calls
``loss``, ``predict`` and ``forward`` and reads ``num_classes``, ``out_channels``,
``align_corners`` and ``threshold``.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.registry import MODELS


@MODELS.register_module()
class Mask2FormerHead(MaskHead):
    """The head for semantic segmentation with MMSegmentation.

    Args:
        num_classes: K, without no-object. With 1 the label maps hold 0 (background) and 1.
        ignore_index: label of pixels that belong to no class.
        align_corners: of the segmentor's final resize; the official code uses False throughout.
        settings: see `MaskHead`. Only in `SemanticSegmentor` is ``in_channels`` optional.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        align_corners: bool = False,
        **settings: Any,
    ) -> None:
        own = {'ignore_index': ignore_index, 'align_corners': align_corners}
        super().__init__(own, num_classes, **settings)
        self.out_channels = num_classes
        self.ignore_index, self.align_corners = ignore_index, align_corners
        # The segmentor compares sigmoid(score) with this for a single class: score > 1/2.
        self.threshold = 1 / (1 + math.exp(-0.5))
        if not self.compat.panoptic_mask_intersection:
            print_log(
                'compat.panoptic_mask_intersection is ignored: a decode head of MMSegmentation '
                'gives semantic results only.',
                logger='current',
                level=logging.WARNING,
            )

    def loss(
        self, inputs: Sequence[Tensor], batch_data_samples: Sequence[Any], train_cfg: Any = None
    ) -> dict[str, Tensor]:
        """Return the losses of all predictions, see `MaskHead`."""
        label_maps = [sample.gt_sem_seg.data.squeeze(0) for sample in batch_data_samples]
        try:
            if self.num_classes == 1:
                targets = core.foreground_targets(label_maps, self.ignore_index)
            else:
                targets = core.label_map_targets(label_maps, self.num_classes, self.ignore_index)
        except core.WrongLabelError as error:
            metainfo = batch_data_samples[error.image].metainfo
            source = metainfo.get('seg_map_path', 'an annotation without seg_map_path')
            raise ValueError(f'{source}: {error}') from None
        return self._losses(inputs, targets, batch_data_samples)

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: Sequence[dict], test_cfg: Any = None
    ) -> Tensor:
        """Return semantic scores ``(B, K, H, W)`` at the size of the network's input (or window).

        The scores are sums of probabilities in ``[0, Q]``, not logits: do not take a softmax.
        """
        meta = batch_img_metas[0]
        # mmseg's sliding loop writes the size of the window into ``img_shape`` of the first image;
        # ``pad_shape`` stays the size of the whole padded image.
        is_window = (test_cfg or {}).get('mode', 'whole') == 'slide'
        shape = meta['img_shape'] if is_window else meta.get('pad_shape', meta['img_shape'])
        size = int(shape[0]), int(shape[1])
        geometry = core.ImageGeometry(padded=size, resized=size, original=size)
        class_logits, mask_logits = self(inputs)
        scores = [
            core.semantic_scores(logits, masks, geometry)
            for logits, masks in zip(class_logits, mask_logits, strict=True)
        ]
        # Stacking a single image would copy it.
        return torch.stack(scores) if len(scores) > 1 else scores[0][None]
