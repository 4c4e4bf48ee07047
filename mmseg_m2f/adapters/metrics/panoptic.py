"""Panoptic quality (PQ)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmseg_m2f.adapters.errors import name_file_in_errors
from mmseg_m2f.adapters.metrics import sample_fields as fields
from mmseg_m2f.evaluation.panoptic_quality import image_statistics, panoptic_quality
from mmseg_m2f.evaluation.summary import mean_of_defined, text_table
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
    needs = 'panoptic_on'  # in test_cfg
    truth_files = staticmethod(fields.segment_files)

    def __init__(self, stated_areas: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.stated_areas = stated_areas

    def process(self, data_batch: Any, data_samples: Sequence[fields.Sample]) -> None:
        """Match the segments of each image."""
        num_classes = len(self._things())
        for sample in data_samples:
            truth = fields.true_segments_of(sample, self.stated_areas)
            predicted = fields.panoptic_of(sample, num_classes)
            with name_file_in_errors('prediction', fields.source_of(sample)):
                self.results.append(image_statistics(truth, predicted, num_classes))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Compute the qualities of all images together."""
        classes, things = self.dataset_meta['classes'], self._things()
        statistics = sum(results, np.zeros((4, len(classes))))
        quality = panoptic_quality(statistics)
        metrics = {}
        for suffix, group in {'': things | True, '_th': things, '_st': ~things}.items():
            if group.any() and np.isnan(quality[:, group]).all():
                fields.log(f'PQ{suffix} is 0: none of its classes occurs, true or predicted')
            for name, per_class in zip(('PQ', 'SQ', 'RQ'), quality, strict=True):
                metrics[name + suffix] = 100 * mean_of_defined(per_class[group])
        kinds = np.where(things, 'thing', 'stuff').tolist()
        rows = zip(classes, kinds, *(100 * quality), *statistics[1:].astype(int), strict=True)
        table = text_table(('class', 'kind', 'PQ', 'SQ', 'RQ', 'TP', 'FP', 'FN'), rows)
        fields.log(f'panoptic quality per class:\n{table}')
        return metrics

    def _things(self) -> np.ndarray:
        things = fields.is_thing(self.dataset_meta)
        if things is None:
            raise ValueError(
                'PanopticMetric needs thing_ids in the metainfo of the data set: the indices of '
                'the classes that are things'
            )
        return things
