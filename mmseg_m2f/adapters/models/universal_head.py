"""The head of `Mask2Former`: instance, panoptic and semantic results from one model."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.models import samples
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.adapters.things import checked_thing_ids
from mmseg_m2f.registry import MODELS


@MODELS.register_module()
class Mask2FormerUniversalHead(MaskHead):
    """The head for instance, panoptic and semantic segmentation with MMDetection.

    It imports neither mmdet nor mmseg.

    Args:
        num_classes: K, things and stuff together, without no-object.
        thing_ids: the classes that are things, in any order; the others are stuff. None: all
            classes are things, as in an instance model.
        settings: see `MaskHead`.
    """

    is_thing: Tensor

    def __init__(
        self, num_classes: int, thing_ids: Sequence[int] | None = None, **settings: Any
    ) -> None:
        things = checked_thing_ids(thing_ids, num_classes)
        super().__init__({'thing_ids': things}, num_classes, **settings)
        is_thing = torch.zeros(num_classes, dtype=torch.bool)
        is_thing[things] = True
        # Not persistent: it is part of the config, not of the weights.
        self.register_buffer('is_thing', is_thing, persistent=False)

    def loss(
        self, inputs: Sequence[Tensor], data_samples: Sequence[Any], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the losses of all predictions, see `MaskHead`.

        ``size`` is the height and width of the network's input. Targets are padded to it.
        """
        targets = samples.targets_of(data_samples, self.is_thing, size)
        return self._losses(inputs, targets, data_samples)

    def predict(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[Any],
        size: tuple[int, int],
        config: core.PostprocessConfig,
    ) -> list[dict[str, Any]]:
        """Return for each image the fields of a ``DetDataSample`` that ``config`` switches on.

        Images and results are formed one by one: neither the rest of the batch nor the other
        results change them. ``size`` is the height and width of the network's input.
        """
        class_logits, mask_logits = self(inputs)
        geometries = [samples.geometry_of(sample, size) for sample in data_samples]
        return [
            self._results(image, config)
            for image in zip(class_logits, mask_logits, geometries, strict=True)
        ]

    def _results(
        self, image: tuple[Tensor, Tensor, core.ImageGeometry], config: core.PostprocessConfig
    ) -> dict[str, Any]:
        # Mask logits are resized before the sigmoid even if only the semantic result is on, which
        # is thus the same whichever others are on.
        results: dict[str, Any] = {}
        if config.instance_on:
            encode = samples.encode_rle if config.mask_format == 'rle' else None
            found = core.instances(*image, self.is_thing, config, encode)
            results['pred_instances'] = InstanceData(
                bboxes=found.boxes, scores=found.scores, labels=found.labels, masks=found.masks
            )
        if config.panoptic_on:
            within = self.compat.panoptic_mask_intersection
            panoptic = core.panoptic(*image, self.is_thing, config, within_masks=within)
            results['pred_panoptic_seg'] = samples.encode_panoptic(panoptic, self.num_classes)
        if config.semantic_on:
            results['pred_sem_seg'] = PixelData(sem_seg=core.semantic_labels(*image)[None])
        return results
