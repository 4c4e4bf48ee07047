"""Mask2Former as an mmdet detector: instance, panoptic and semantic results of one model."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from mmseg_m2f import core
from mmseg_m2f.adapters.models.config import HeadConfig, compat_config
from mmseg_m2f.adapters.models.head import MaskHead, reject_unknown
from mmseg_m2f.adapters.models.mmcv_attention import import_failure
from mmseg_m2f.adapters.models.parts import PartConfig
from mmseg_m2f.adapters.models.samples import (
    encode_panoptic,
    encode_rle,
    geometry_of,
    instance_data,
    targets_of,
)
from mmseg_m2f.adapters.things import checked_thing_ids
from mmseg_m2f.registry import MODELS

__all__ = ['Mask2FormerUniversalHead', 'build_detector', 'encode_panoptic']

Results = dict[str, InstanceData | PixelData]


@MODELS.register_module()
class Mask2FormerUniversalHead(MaskHead):
    """The head of `Mask2Former`; it needs neither mmdet nor mmseg.

    Args:
        num_classes: K, things and stuff together, without no-object.
        in_channels: channels of the backbone's maps, stride 4 first.
        thing_ids: the classes that are things, in any order; the others are stuff. Default: all
            of them, an instance model.
        num_queries: Q.
        pixel_decoder, decoder, matcher: settings of the parts; ``type`` replaces a part.
        losses: ``cls``, ``mask``, ``dice`` and ``points``, each the settings of a part. The
            matcher's costs and points follow the losses unless set.
        class_weight: K numbers, or K + 1 with no-object last; default all 1.
        no_object_weight: weight of no-object in the class loss.
        compat: switches to what MMDetection does otherwise than the official code, see
            `core.CompatConfig`.
        init_cfg: MMEngine's; the parts initialise themselves as the official code does.

    Raises:
        ValueError: a key that no part knows, sizes that do not fit together, wrong ``thing_ids``.
    """

    is_thing: Tensor

    def __init__(  # noqa: PLR0913 - they are the keys of the config
        self,
        num_classes: int,
        in_channels: Sequence[int],
        thing_ids: Sequence[int] | None = None,
        num_queries: int = 100,
        pixel_decoder: PartConfig | None = None,
        decoder: PartConfig | None = None,
        matcher: PartConfig | None = None,
        losses: Mapping[str, PartConfig] | None = None,
        class_weight: Sequence[float] | None = None,
        no_object_weight: float = 0.1,
        compat: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
        **unknown: Any,
    ) -> None:
        reject_unknown(Mask2FormerUniversalHead, unknown)
        things = checked_thing_ids(thing_ids, num_classes)
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
        super().__init__(config, {'thing_ids': things}, init_cfg)
        is_thing = torch.zeros(num_classes, dtype=torch.bool)
        is_thing[things] = True
        # Part of the configuration, not of the weights.
        self.register_buffer('is_thing', is_thing, persistent=False)

    def loss(
        self, inputs: Sequence[Tensor], data_samples: Sequence[Any], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Losses of all predictions: ``loss_cls`` ... of the last, ``d{i}.loss_cls`` ... before.

        ``size`` is that of the network's input, to which the targets are padded.

        Raises:
            ValueError: a label that is no class, or a sample without masks, with the file.
            NonFinitePredictionError: NaN in a prediction, with the image and the learning rate.
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
        """Per image the fields of a ``DetDataSample`` that ``config`` switches on.

        Each image is treated alone, and each result is formed by itself, so that neither the
        rest of the batch nor the other results change it.
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
        # Mask logits are resized before the sigmoid whatever is asked for: a model with instances
        # or segments is never semantic-only.
        prediction = class_logits, mask_logits, partial(core.restore_masks, geometry=geometry)
        results: Results = {}
        if config.instance_on:
            encode = encode_rle if config.mask_format == 'rle' else None
            instances = core.instances(*prediction, self.is_thing, config, encode)
            results['pred_instances'] = instance_data(instances)
        if config.panoptic_on:
            panoptic = core.panoptic(
                *prediction,
                self.is_thing,
                config,
                within_masks=self.compat.panoptic_mask_intersection,
            )
            results['pred_panoptic_seg'] = encode_panoptic(panoptic, self.num_classes)
        if config.semantic_on:
            labels = core.semantic_labels(class_logits, mask_logits, geometry)
            results['pred_sem_seg'] = PixelData(sem_seg=labels[None])
        return results


@MODELS.register_module(name='Mask2Former')
def build_detector(**keys: Any) -> nn.Module:
    """The detector; its module imports mmdet, which semantic models do without.

    Raises:
        ImportError: mmdet is not there, with what to install.
        MissingOperatorsError: mmdet is there and lacks mmcv's operators.
    """
    try:
        from mmseg_m2f.adapters.models.detector import Mask2Former
    except (ImportError, AssertionError) as error:  # mmdet asserts the version of mmcv
        raise import_failure(
            'MMDetection',
            error,
            f'mmseg_m2f.Mask2Former is a detector of MMDetection, which cannot be imported '
            f'({error}). Install it: pip install onedl-mmdetection (onedl stack) or pip install '
            'mmdet (upstream); semantic models of MMSegmentation do without.',
        ) from error
    return Mask2Former(**keys)
