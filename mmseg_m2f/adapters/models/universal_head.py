"""The head of `Mask2Former`: instance, panoptic and semantic results from one model."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.adapters.models.samples import (
    encode_panoptic,
    encode_rle,
    geometry_of,
    targets_of,
)
from mmseg_m2f.adapters.things import checked_thing_ids
from mmseg_m2f.registry import MODELS

Results = dict[str, InstanceData | PixelData]


@MODELS.register_module()
class Mask2FormerUniversalHead(MaskHead):
    """The head for instance, panoptic and semantic segmentation with MMDetection.

    It imports neither mmdet nor mmseg.

    Args:
        num_classes: K, things and stuff together, without no-object.
        in_channels: channels of the backbone's maps, stride 4 first; ``mmseg_m2f.Mask2Former``
            takes them from its backbone and neck if they are not set.
        thing_ids: the classes that are things, in any order; the others are stuff. None: all
            classes are things, as in an instance model.
        init_cfg, settings: see `MaskHead`.

    Raises:
        ValueError, UnknownChannelsError: see `MaskHead`; also wrong ``thing_ids``.
    """

    is_thing: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int] | None = None,
        thing_ids: Sequence[int] | None = None,
        init_cfg: dict | None = None,
        **settings: Any,
    ) -> None:
        things = checked_thing_ids(thing_ids, num_classes)
        sizes = {'num_classes': num_classes, 'in_channels': in_channels}
        super().__init__({'thing_ids': things}, {**sizes, **settings}, init_cfg)
        is_thing = torch.zeros(num_classes, dtype=torch.bool)
        is_thing[things] = True
        # Not persistent: it is part of the config, not of the weights.
        self.register_buffer('is_thing', is_thing, persistent=False)

    def loss(
        self, inputs: Sequence[Tensor], data_samples: Sequence[Any], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the losses of all predictions, see `MaskHead`.

        ``size`` is the height and width of the network's input. Targets are padded to it.

        Raises:
            ValueError: a label that is no class, or a sample without masks; names the file.
            NonFinitePredictionError: see `MaskHead`.
        """
        targets = targets_of(data_samples, self.is_thing, size)
        return self._losses(inputs, targets, data_samples)

    def predict(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[Any],
        size: tuple[int, int],
        config: core.PostprocessConfig,
    ) -> list[Results]:
        """Return for each image the fields of a ``DetDataSample`` that ``config`` switches on.

        Images and results are formed one by one: neither the rest of the batch nor the other
        results change them. ``size`` is the height and width of the network's input.
        """
        class_logits, mask_logits = self(inputs)
        geometries = [geometry_of(sample, size) for sample in data_samples]
        return [
            self._results(*image, config)
            for image in zip(class_logits, mask_logits, geometries, strict=True)
        ]

    def _results(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        geometry: core.ImageGeometry,
        config: core.PostprocessConfig,
    ) -> Results:
        # Mask logits are resized before the sigmoid even if only the semantic result is on, which
        # is thus the same whichever others are on.
        prediction = class_logits, mask_logits, geometry
        results: Results = {}
        if config.instance_on:
            encode = encode_rle if config.mask_format == 'rle' else None
            instances = core.instances(*prediction, self.is_thing, config, encode)
            results['pred_instances'] = InstanceData(
                bboxes=instances.boxes,
                scores=instances.scores,
                labels=instances.labels,
                masks=instances.masks,
            )
        if config.panoptic_on:
            within = self.compat.panoptic_mask_intersection
            panoptic = core.panoptic(*prediction, self.is_thing, config, within_masks=within)
            results['pred_panoptic_seg'] = encode_panoptic(panoptic, self.num_classes)
        if config.semantic_on:
            results['pred_sem_seg'] = PixelData(sem_seg=core.semantic_labels(*prediction)[None])
        return results
