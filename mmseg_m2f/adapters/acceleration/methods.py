"""Methods that take the place of those of a stock head and detector.

Each returns what the stock method of its name returns, and calls that where our parts may not
compute.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.acceleration.twin import Twin


class HeadMethods:
    """The methods that the heads of mmseg and mmdet have in common."""

    def __init__(self, head: Any, twin: Twin) -> None:
        self.head, self.twin = head, twin

    def forward(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[Any] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the class logits and the mask logits of all predictions."""
        if not self.twin.ready():
            return self.stock('forward', x, batch_data_samples)
        features = self.twin.ours.pixel_decoder(x)
        predictions = self.twin.ours.decoder(features)
        masks = [
            core.mask_logits(core.upcast_half(p.mask_embed), features.mask_features)
            for p in predictions
        ]
        return [p.class_logits for p in predictions], masks

    def ready(self, objection: str = '') -> bool:
        """Return True if ours may compute without a call of the head itself."""
        if self.head._forward_hooks or self.head._forward_pre_hooks:
            objection = objection or 'the head has hooks, which ours would pass by'
        return self.twin.ready(objection)

    def stock(self, name: str, *args: Any) -> Any:
        """Call the stock method ``name``."""
        return getattr(type(self.head), name)(self.head, *args)


class SemanticMethods(HeadMethods):
    """Methods of mmseg's decode head."""

    def loss(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[Any], train_cfg: Any = None
    ) -> dict[str, Tensor]:
        if not self.ready():
            return self.stock('loss', x, batch_data_samples, train_cfg)
        return _last_first(self.twin.ours.loss(x, batch_data_samples))

    def predict(
        self, x: Sequence[Tensor], batch_img_metas: Sequence[dict], test_cfg: Any = None
    ) -> Tensor:
        if not self.ready():
            return self.stock('predict', x, batch_img_metas, test_cfg)
        return self.twin.ours.predict(x, batch_img_metas, test_cfg)


class UniversalMethods(HeadMethods):
    """Methods of mmdet's head."""

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        all_masks = [sample.gt_instances.masks for sample in batch_data_samples]
        sizes = {(masks.height, masks.width) for masks in all_masks}
        several = 'the masks of a batch have several sizes' if len(sizes) > 1 else ''
        if not self.ready(several):
            return self.stock('loss', x, batch_data_samples)
        return _last_first(self.twin.ours.loss(x, batch_data_samples, sizes.pop()))

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]
    ) -> tuple[Tensor, Tensor]:
        if not self.ready():
            return self.stock('predict', x, batch_data_samples)
        class_logits, mask_logits = self.twin.ours(x)
        height, width = batch_data_samples[0].metainfo['batch_input_shape'][:2]
        resized = [core.resize_masks(masks, (height, width)) for masks in mask_logits]
        return class_logits, torch.stack(resized)


class DetectorMethods:
    """``predict`` of mmdet's detector, which then needs no stack of full-size masks."""

    def __init__(self, detector: Any, head: UniversalMethods) -> None:
        self.detector, self.head = detector, head

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[Any], rescale: bool = True
    ) -> Sequence[Any]:
        detector = self.detector
        if not rescale or not self.head.ready():
            return type(detector).predict(detector, batch_inputs, batch_data_samples, rescale)
        test_cfg = detector.panoptic_fusion_head.test_cfg or {}
        ours = self.head.twin.ours
        within = bool(test_cfg.get('filter_low_score', False))
        ours.compat = dataclasses.replace(ours.compat, panoptic_mask_intersection=within)
        maps, size = detector.extract_feat(batch_inputs), tuple(batch_inputs.shape[-2:])
        results = ours.predict(maps, batch_data_samples, size, postprocess_config(test_cfg))
        for sample, fields in zip(batch_data_samples, results, strict=True):
            for name, value in fields.items():
                setattr(sample, name, value)
        return batch_data_samples


def postprocess_config(test_cfg: Mapping[str, Any]) -> core.PostprocessConfig:
    """Translate mmdet's ``test_cfg``.

    Raises:
        ValueError: a threshold that is no probability, or the like.
    """
    return core.PostprocessConfig(
        panoptic_on=test_cfg.get('panoptic_on', True),
        semantic_on=test_cfg.get('semantic_on', False),
        instance_on=test_cfg.get('instance_on', False),
        max_per_image=test_cfg.get('max_per_image', 100),
        object_mask_thr=test_cfg.get('object_mask_thr', 0.8),
        overlap_thr=test_cfg.get('iou_thr', 0.8),
    )


def _last_first(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the last prediction's losses first, as the stock heads and so their logs have them."""
    return dict(sorted(losses.items(), key=lambda item: item[0].startswith('d')))
