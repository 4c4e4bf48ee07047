"""Panoptic quality (PQ)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmseg_m2f.adapters.metrics.sample_fields import (
    Sample,
    is_thing,
    log,
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
from mmseg_m2f.evaluation.tables import text_table
from mmseg_m2f.registry import METRICS


@METRICS.register_module()
class PanopticMetric(BaseMetric):
    """Compute ``PQ``, ``SQ`` and ``RQ`` in percent, also for things (``_th``) and stuff (``_st``).

    It reads ``pred_panoptic_seg`` in mmdet's encoding, and the ground truth from the PNG that the
    sample names. Averages are over the classes that occur in the ground truth or in a prediction.
    A table of all classes goes to the log.

    Args:
        stated_areas: take the areas of the true segments from the JSON file, as panopticapi does,
            and not from the map. A segment without a pixel in the map then counts as missed.
        settings: ``collect_device``, ``prefix`` and ``collect_dir`` of MMEngine's ``BaseMetric``.
    """

    default_prefix = 'coco_panoptic'
    # The output that test_cfg must switch on.
    needs = 'panoptic_on'

    def __init__(self, stated_areas: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.stated_areas = stated_areas

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List the files to be read for a record, each with a hint for when it is missing."""
        return segment_files(record)

    def process(self, data_batch: Any, data_samples: Sequence[Sample]) -> None:
        """Match the segments of each image.

        Raises:
            ValueError: the data set does not say which classes are things, or prediction and
                ground truth do not belong to the same image.
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
        """Compute the qualities of all images together."""
        classes, things = self.dataset_meta['classes'], self._things()
        quality = panoptic_quality(sum(results, np.zeros((4, len(classes)))))
        groups = {'': np.ones_like(things), '_th': things, '_st': ~things}
        metrics = {}
        for suffix, group in groups.items():
            if group.any() and not quality.occurs[group].any():
                log(f'PQ{suffix} is 0: none of its classes occurs, true or predicted')
            for name, value in zip(('PQ', 'SQ', 'RQ'), averages(quality, group), strict=True):
                metrics[name + suffix] = 100 * value
        log(f'panoptic quality per class:\n{_table(classes, things, quality)}')
        return metrics

    def _things(self) -> np.ndarray:
        things = is_thing(self.dataset_meta)
        if things is None:
            raise ValueError(
                'PanopticMetric needs thing_ids in the metainfo of the data set: the indices of '
                'the classes that are things'
            )
        return things


def _table(classes: Sequence[str], things: np.ndarray, quality: PanopticQuality) -> str:
    percent = [100 * np.where(quality.occurs, values, np.nan) for values in quality[:3]]
    kinds = np.where(things, 'thing', 'stuff').tolist()
    counts = quality.tp, quality.fp, quality.fn
    rows = zip(classes, kinds, *percent, *counts, strict=True)
    return text_table(('class', 'kind', 'PQ', 'SQ', 'RQ', 'TP', 'FP', 'FN'), rows)
