"""mIoU of semantic predictions."""

import logging
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from PIL import Image

from mmseg_m2f.adapters.errors import name_file_in_errors
from mmseg_m2f.adapters.metrics import sample_fields as fields
from mmseg_m2f.evaluation.semantic_iou import NO_CLASS, class_areas, semantic_quality
from mmseg_m2f.evaluation.summary import mean_of_defined, text_table
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import METRICS


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
    needs = 'semantic_on'  # in test_cfg

    def __init__(
        self, ignore_index: int | None = None, reduce_zero_label: bool = False, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.ignore_index = ignore_index
        self.reduce_zero_label = reduce_zero_label

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List the files to be read for a record, each with a hint for when it is missing."""
        path = record.get('label_map_path')
        if not path:
            return fields.segment_files(record)
        hint = 'Check data_root, data_prefix.label_map and label_map_suffix of the data set'
        if 'panoptic_semseg_' in path:
            hint = "tools/prepare_dataset.py coco-panoptic-semantic makes COCO's"
        return [(path, f'{hint}; without data_prefix.label_map the panoptic PNG is read instead')]

    def process(self, data_batch: Any, data_samples: Sequence[fields.Sample]) -> None:
        """Count the pixels of each image."""
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            truth, predicted = self._truth(sample), fields.label_map_of(sample)
            try:
                self.results.append(class_areas(truth, predicted, num_classes))
            except ValueError as error:
                raise ValueError(
                    f'{fields.source_of(sample)}: {error}. The metric reads label maps with '
                    f'ignore_index={self._ignored()}, reduce_zero_label={self.reduce_zero_label}'
                ) from None

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Average over the classes."""
        classes = self.dataset_meta['classes']
        areas = sum(results, np.zeros((3, len(classes)), np.int64))
        iou, accuracy, pixel_accuracy = semantic_quality(areas)
        if np.isnan(iou).all():
            fields.log('mIoU is 0: no pixel has a class')
        if len(classes) == 1:
            fields.log(
                'the data set has only one class: every pixel is predicted as this class, so mIoU '
                'says nothing about the model. Look at AP or PQ instead',
                logging.WARNING,
            )
        rows = zip(classes, 100 * iou, 100 * accuracy, strict=True)
        fields.log(f'IoU per class:\n{text_table(("class", "IoU", "Acc"), rows)}')
        return {
            'aAcc': 100 * pixel_accuracy,
            'mIoU': 100 * mean_of_defined(iou),
            'mAcc': 100 * mean_of_defined(accuracy),
        }

    def _truth(self, sample: fields.Sample) -> np.ndarray:
        """Read the true class of each pixel ``(H, W)`` int64; `NO_CLASS` where there is none."""
        if not sample.get('label_map_path'):
            truth = fields.true_segments_of(sample)
            return np.append(NO_CLASS, truth.labels)[truth.segment_map]
        path = sample['label_map_path']
        with name_file_in_errors('label map', path), Image.open(BytesIO(get(path))) as image:
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
        return load_metadata(name).ignore_index if name else 255
