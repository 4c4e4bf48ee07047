"""mIoU of semantic predictions."""

import logging
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from PIL import Image

from mmseg_m2f.adapters.errors import errors_name
from mmseg_m2f.adapters.metrics.sample_fields import (
    Sample,
    label_map_of,
    log,
    segment_files,
    source_of,
    true_segments_of,
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

# Label of pixels without a class, where the data set names no other.
IGNORE_INDEX = 255


@METRICS.register_module()
class SemanticMetric(BaseMetric):
    """Compute ``mIoU``, ``mAcc`` and ``aAcc`` in percent, like mmseg's ``IoUMetric``.

    It reads ``pred_sem_seg``. The ground truth is the label map that the sample names
    (``label_map_path``), or else its panoptic PNG, where crowds count as their class. mIoU is the
    mean over the classes that occur in the ground truth or in a prediction. A table of all
    classes goes to the log.

    Args:
        ignore_index: label of pixels without a class in label maps. Default: the one of the data
            set's metadata, or 255.
        reduce_zero_label: label maps count classes from 1, and 0 means no class.
        settings: ``collect_device``, ``prefix`` and ``collect_dir`` of MMEngine's ``BaseMetric``.
    """

    # Not None, about which MMEngine warns: mmseg's metric has no prefix either.
    default_prefix = ''
    # The output that test_cfg must switch on.
    needs = 'semantic_on'

    def __init__(
        self, ignore_index: int | None = None, reduce_zero_label: bool = False, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.ignore_index = ignore_index
        self.reduce_zero_label = reduce_zero_label
        self._has_warned = False

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List the files to be read for a record, each with a hint for when it is missing."""
        if not record.get('label_map_path'):
            return segment_files(record)
        path = record['label_map_path']
        hint = 'Check data_root, data_prefix.label_map and label_map_suffix of the data set'
        if 'panoptic_semseg_' in path:
            hint = "tools/prepare_dataset.py coco-panoptic-semantic makes COCO's"
        else_hint = 'without data_prefix.label_map the panoptic PNG is read in its place'
        return [(path, f'{hint}; {else_hint}')]

    def process(self, data_batch: Any, data_samples: Sequence[Sample]) -> None:
        """Count the pixels of each image.

        Raises:
            ValueError: a label is no class, or prediction and ground truth differ in size.
        """
        num_classes = len(self.dataset_meta['classes'])
        if num_classes == 1 and not self._has_warned:
            log(
                'the data set has only one class: every pixel is predicted as this class, so mIoU '
                'says nothing about the model. Look at AP or PQ instead',
                logging.WARNING,
            )
            self._has_warned = True
        for sample in data_samples:
            truth, predicted = self._truth(sample), label_map_of(sample)
            try:
                self.results.append(class_areas(truth, predicted, num_classes))
            except ValueError as error:
                raise ValueError(
                    f'{source_of(sample)}: {error}. The metric reads label maps with '
                    f'ignore_index={self._ignored()}, reduce_zero_label={self.reduce_zero_label}'
                ) from None

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Average over the classes."""
        classes = self.dataset_meta['classes']
        quality = semantic_quality(sum(results, np.zeros((3, len(classes)), np.int64)))
        if np.isnan(quality.iou).all():
            log('mIoU is 0: no pixel has a class')
        rows = zip(classes, 100 * quality.iou, 100 * quality.accuracy, strict=True)
        log(f'IoU per class:\n{text_table(("class", "IoU", "Acc"), rows)}')
        return {
            'aAcc': 100 * quality.pixel_accuracy,
            'mIoU': 100 * mean_of_defined(quality.iou),
            'mAcc': 100 * mean_of_defined(quality.accuracy),
        }

    def _truth(self, sample: Sample) -> np.ndarray:
        """Read the true class of each pixel ``(H, W)`` int64; `NO_CLASS` where there is none."""
        if not sample.get('label_map_path'):
            truth = true_segments_of(sample)
            return np.append(NO_CLASS, truth.labels)[truth.segment_map]
        path = sample['label_map_path']
        with errors_name('label map', path), Image.open(BytesIO(get(path))) as image:
            label_map = np.asarray(image).astype(np.int64)
        has_no_class = label_map == self._ignored()
        if self.reduce_zero_label:
            label_map -= 1  # 0 becomes NO_CLASS
        label_map[has_no_class] = NO_CLASS
        return label_map

    def _ignored(self) -> int:
        if self.ignore_index is not None:
            return self.ignore_index
        name = self.dataset_meta.get('metadata')
        return load_metadata(name).ignore_index if name else IGNORE_INDEX
