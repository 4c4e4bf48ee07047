"""Our detector for MMDetection. Importing this module imports mmdet; `lazy` does not."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.adapters.keys import check_keys
from mmseg_m2f.adapters.models.channels import with_in_channels
from mmseg_m2f.adapters.models.config import build_postprocess_config
from mmseg_m2f.evaluation.panoptic_map import INSTANCE_OFFSET, id2rgb

_RESULTS = ('semantic_on', 'instance_on', 'panoptic_on')


class Mask2Former(BaseDetector):
    """A detector of MMDetection with instance, panoptic and semantic results from one model.

    Args:
        backbone: config of a backbone whose maps have strides 4, 8, 16 and 32.
        panoptic_head: config of `Mask2FormerUniversalHead`; without ``in_channels`` it takes those
            of the backbone and neck.
        neck: config of a neck between the two, if any.
        data_preprocessor: mmdet's ``DetDataPreprocessor`` with its settings.
        test_cfg: the fields of `core.PostprocessConfig`: which results, and their thresholds.
        init_cfg: MMEngine's.
    """

    def __init__(
        self,
        backbone: dict,
        panoptic_head: dict,
        neck: dict | None = None,
        data_preprocessor: dict | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
        **unknown: Any,
    ) -> None:
        known = list(inspect.signature(Mask2Former).parameters)[:-1]
        check_keys('mmseg_m2f.Mask2Former', unknown, known)
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck is not None else None
        self.panoptic_head = MODELS.build(with_in_channels(panoptic_head, self.backbone, self.neck))
        self.test_cfg = test_cfg
        replace_panopticapi()

    @property
    def test_cfg(self) -> core.PostprocessConfig:
        """Return the settings of the results and their thresholds; a dict may be assigned."""
        return self._test_cfg

    @test_cfg.setter
    def test_cfg(self, test_cfg: Mapping[str, Any] | core.PostprocessConfig | None) -> None:
        config = test_cfg
        if not isinstance(config, core.PostprocessConfig):
            config = build_postprocess_config(config)
        if not any(getattr(config, name) for name in _RESULTS):
            raise ValueError(
                f'test_cfg switches all results off: at least one of {_RESULTS} must be True'
            )
        num_classes = self.panoptic_head.num_classes
        if config.panoptic_on and num_classes >= INSTANCE_OFFSET:
            raise ValueError(
                f"MMDetection's panoptic maps hold fewer than {INSTANCE_OFFSET} classes, the head "
                f'has {num_classes}: set test_cfg.panoptic_on=False'
            )
        self._test_cfg = config

    def extract_feat(self, batch_inputs: Tensor) -> Sequence[Tensor]:
        """Return the maps that the head gets, stride 4 first."""
        maps = self.backbone(batch_inputs)
        return maps if self.neck is None else self.neck(maps)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        maps, size = self.extract_feat(batch_inputs), batch_inputs.shape[-2:]
        return self.panoptic_head.loss(maps, batch_data_samples, tuple(size))

    def predict(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> Sequence[Any]:
        """Return the samples with ``pred_instances``, ``pred_panoptic_seg`` and ``pred_sem_seg``.

        ``test_cfg`` says which. All have the original size of the image.
        """
        maps, size = self.extract_feat(batch_inputs), batch_inputs.shape[-2:]
        results = self.panoptic_head.predict(maps, batch_data_samples, tuple(size), self.test_cfg)
        for sample, result in zip(batch_data_samples, results, strict=True):
            for name, value in result.items():
                setattr(sample, name, value)
        return batch_data_samples

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.panoptic_head(self.extract_feat(batch_inputs))


def replace_panopticapi() -> None:
    """Let mmdet's ``DetInferencer`` return panoptic results without the package panopticapi.

    The inferencer takes the id of void and the color code of segment ids from panopticapi, which no
    package index has. Without it both are None, and every panoptic result is refused.
    """
    inferencer: Any = sys.modules.get('mmdet.apis.det_inferencer')
    if inferencer is not None and inferencer.VOID is None:
        inferencer.VOID, inferencer.id2rgb = 0, id2rgb
