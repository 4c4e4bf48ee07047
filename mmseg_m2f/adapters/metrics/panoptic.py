"""Metrics of panoptic and semantic results; `instance_metrics` has those of instances.

They compute per image, as the test proceeds, all that needs its pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from mmengine.logging import print_log
from PIL import Image

from mmseg_m2f.adapters.metrics.sample_fields import (
    Sample,
    errors_name,
    is_thing,
    label_map_of,
    panoptic_of,
    segment_files,
    source_of,
    true_segments_of,
)
from mmseg_m2f.evaluation.panoptic_quality import (
    PanopticQuality,
    averages,
    image_statistics,
    panoptic_quality,
)
from mmseg_m2f.evaluation.semantic_iou import (
    NO_CLASS,
    class_areas,
    mean_of_defined,
    semantic_quality,
)
from mmseg_m2f.evaluation.tables import text_table
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import METRICS

IGNORE_INDEX = 255


@METRICS.register_module()
class PanopticMetric(BaseMetric):
    """Panoptic quality in percent: ``PQ``, ``SQ``, ``RQ``; of things ``PQ_th``, of stuff ``PQ_st``.

    Takes ``pred_panoptic_seg`` in mmdet's encoding, and the truth from the PNG that the sample
    names. Averages are over the classes that occur, in the truth or in a prediction. A table of
    all classes goes to the log.

    Args:
        stated_areas: take the true segments' areas from the JSON file, as panopticapi does, and
            not from the map. A segment of which the map shows no pixel is missed then.
        collect_device, prefix, collect_dir: MMEngine's.
    """

    default_prefix = 'coco_panoptic'
    # What test_cfg must switch on.
    needs = 'panoptic_on'

    def __init__(
        self,
        stated_areas: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        self.stated_areas = stated_areas

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What will be read for a record of the data set, each with a hint if it is missing."""
        return segment_files(record)

    def process(self, data_batch: Any, data_samples: Sequence[Sample]) -> None:
        """Matches the segments of each image.

        Raises:
            ValueError: the data set does not tell which classes are things, or truth and
                prediction are not those of one image.
        """
        self._things()
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            truth = true_segments_of(sample, self.stated_areas)
            predicted = panoptic_of(sample, num_classes)
            try:
                self.results.append(image_statistics(truth, predicted, num_classes))
            except ValueError as error:
                raise ValueError(f'{source_of(sample)}: {error}') from None

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """The qualities of all images together."""
        classes, things = self.dataset_meta['classes'], self._things()
        quality = panoptic_quality(sum(results, np.zeros((4, len(classes)))))
        groups = {'': np.ones_like(things), '_th': things, '_st': ~things}
        metrics = {}
        for suffix, group in groups.items():
            if group.any() and not quality.occurs[group].any():
                _log(f'PQ{suffix} is 0: none of its classes occurs, true or predicted')
            for name, value in zip(('PQ', 'SQ', 'RQ'), averages(quality, group), strict=True):
                metrics[name + suffix] = 100 * value
        _log(f'panoptic quality per class:\n{_panoptic_table(classes, things, quality)}')
        return metrics

    def _things(self) -> np.ndarray:
        things = is_thing(self.dataset_meta)
        if things is None:
            raise ValueError(
                'PanopticMetric needs thing_ids in the metainfo of the data set: the indices of '
                'the classes that are things'
            )
        return things


def _panoptic_table(classes: Sequence[str], things: np.ndarray, quality: PanopticQuality) -> str:
    percent = [100 * np.where(quality.occurs, values, np.nan) for values in quality[:3]]
    kinds = np.where(things, 'thing', 'stuff').tolist()
    counts = quality.tp, quality.fp, quality.fn
    rows = zip(classes, kinds, *percent, *counts, strict=True)
    return text_table(('class', 'kind', 'PQ', 'SQ', 'RQ', 'TP', 'FP', 'FN'), rows)


@METRICS.register_module()
class SemanticMetric(BaseMetric):
    """``mIoU``, ``mAcc`` and ``aAcc`` in percent, as mmseg's IoUMetric has them.

    Takes ``pred_sem_seg``, and the truth from the label map that the sample names
    (``label_map_path``) or else from its panoptic PNG, where crowds have their class. mIoU is
    over the classes that occur, in the truth or in a prediction. A table goes to the log.

    Args:
        ignore_index: label of pixels without a class, in label maps. Default: that of the data
            set's metadata, or 255.
        reduce_zero_label: label maps count classes from 1, and 0 means no class.
        collect_device, prefix, collect_dir: MMEngine's.
    """

    # Not None, which MMEngine warns of: the names are those of mmseg's metric, without prefix.
    default_prefix = ''
    needs = 'semantic_on'

    def __init__(
        self,
        ignore_index: int | None = None,
        reduce_zero_label: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        self.ignore_index = ignore_index
        self.reduce_zero_label = reduce_zero_label
        self._has_warned = False

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What will be read for a record of the data set, each with a hint if it is missing."""
        if not record.get('label_map_path'):
            return segment_files(record)
        path = record['label_map_path']
        hint = 'Check data_root, data_prefix.label_map and label_map_suffix of the data set'
        if 'panoptic_semseg_' in path:
            hint = "tools/prepare_dataset.py coco-panoptic-semantic makes COCO's"
        else_hint = 'without data_prefix.label_map the panoptic PNG is read in its place'
        return [(path, f'{hint}; {else_hint}')]

    def process(self, data_batch: Any, data_samples: Sequence[Sample]) -> None:
        """Counts the pixels of each image."""
        num_classes = len(self.dataset_meta['classes'])
        if num_classes == 1 and not self._has_warned:
            _log(
                'there is one class only: every pixel is predicted as it, and so mIoU says nothing '
                'about the model. See the AP or the PQ',
                logging.WARNING,
            )
            self._has_warned = True
        for sample in data_samples:
            truth, predicted = self._truth(sample), label_map_of(sample)
            try:
                self.results.append(class_areas(truth, predicted, num_classes))
            except ValueError as error:
                raise ValueError(
                    f'{source_of(sample)}: {error}. Of label maps the metric takes '
                    f'ignore_index={self._ignored()}, reduce_zero_label={self.reduce_zero_label}'
                ) from None

    def _truth(self, sample: Sample) -> np.ndarray:
        """The true class of each pixel ``(H, W)`` int64, or `NO_CLASS`."""
        if not sample.get('label_map_path'):
            truth = true_segments_of(sample)
            return np.append(NO_CLASS, truth.labels)[truth.segment_map]
        path = sample['label_map_path']
        with errors_name('label map', path), Image.open(BytesIO(get(path))) as image:
            label_map = np.asarray(image).astype(np.int64)
        has_no_class = label_map == self._ignored()
        if self.reduce_zero_label:
            has_no_class |= label_map == 0
            label_map -= 1
        label_map[has_no_class] = NO_CLASS
        return label_map

    def _ignored(self) -> int:
        if self.ignore_index is not None:
            return self.ignore_index
        name = self.dataset_meta.get('metadata')
        return load_metadata(name).ignore_index if name else IGNORE_INDEX

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """The means over the classes."""
        classes = self.dataset_meta['classes']
        quality = semantic_quality(sum(results, np.zeros((3, len(classes)), np.int64)))
        if np.isnan(quality.iou).all():
            _log('mIoU is 0: no pixel has a class')
        rows = zip(classes, 100 * quality.iou, 100 * quality.accuracy, strict=True)
        _log(f'IoU per class:\n{text_table(("class", "IoU", "Acc"), rows)}')
        return {
            'aAcc': 100 * quality.pixel_accuracy,
            'mIoU': 100 * mean_of_defined(quality.iou),
            'mAcc': 100 * mean_of_defined(quality.accuracy),
        }


def _log(message: str, level: int = logging.INFO) -> None:
    print_log(message, 'current', level)
