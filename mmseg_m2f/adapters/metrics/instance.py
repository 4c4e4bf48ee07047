"""COCO's mask AP."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get

from mmseg_m2f.adapters.metrics.sample_fields import (
    Sample,
    category_ids_by_name,
    instances_of,
    is_thing,
    log,
    segment_files,
    source_of,
    true_segments_of,
)
from mmseg_m2f.evaluation.coco_file import CocoFile
from mmseg_m2f.evaluation.instance_ap import (
    ImageInstances,
    InstanceScores,
    has_faster_coco_eval,
    instance_scores,
    predicted_instances,
    true_instances,
)
from mmseg_m2f.evaluation.rle import import_coco_mask
from mmseg_m2f.evaluation.tables import text_table
from mmseg_m2f.registry import METRICS

ANN_FILE_HINT = (
    'The path is relative to where the program runs, not to data_root. Without ann_file the '
    'metric reads the ground truth from the panoptic PNG files'
)


@METRICS.register_module()
class InstanceMetric(BaseMetric):
    """Compute COCO's mask AP in [0, 1]: ``segm_mAP``, ``_50``, ``_75``, ``_s``, ``_m``, ``_l``.

    It reads ``pred_instances``. faster-coco-eval does the computation if it is installed, and
    also gives ``boundary_mAP``; otherwise pycocotools does, with the same numbers. Only the images
    of the test count, and only the things of the data set. The AP of an area (s, m, l) without a
    true instance is -1, as in COCO. If nothing is predicted, or no instance is true at all, every
    AP is 0. A table of all classes goes to the log.

    Args:
        ann_file: JSON file of the true instances. Default: the things of the panoptic PNG that
            each sample names.
        max_dets: how many instances with the best scores count, per image and class.
        boundary: also compute ``boundary_mAP``, if faster-coco-eval is installed.
        settings: ``collect_device``, ``prefix`` and ``collect_dir`` of MMEngine's ``BaseMetric``.

    Raises:
        ImportError: pycocotools is not installed.
    """

    default_prefix = 'coco'
    # The output that test_cfg must switch on.
    needs = 'instance_on'

    def __init__(
        self,
        ann_file: str | None = None,
        max_dets: int = 100,
        boundary: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        # Fail now if the package is missing, not at the end of the first test.
        import_coco_mask()
        self.ann_file = ann_file
        self.max_dets = max_dets
        self.boundary = boundary
        self._truth: CocoFile | None = None

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List the files to be read for a record, each with a hint for when it is missing."""
        return segment_files(record) if self.ann_file is None else [(self.ann_file, ANN_FILE_HINT)]

    def process(self, data_batch: Any, data_samples: Sequence[Sample]) -> None:
        """Keep the predicted and true instances of each image, masks as run lengths or polygons.

        Raises:
            FileNotFoundError: ``ann_file`` does not exist.
            ValueError: ``ann_file`` is not in COCO's format, lacks a thing of the data set, or
                states another size for an image than the prediction has.
        """
        things, category_ids = self._things(), self._category_ids()
        for sample in data_samples:
            masks, labels, scores = instances_of(sample)
            kept = things[labels]
            if not kept.all():
                masks, labels, scores = masks[kept], labels[kept], scores[kept]
            size = masks.shape[1:]
            self.results.append(
                ImageInstances(
                    image_id=sample['img_id'],
                    size=size,
                    predicted=predicted_instances(masks, labels, scores, category_ids),
                    true=self._true_instances(sample, size, things, category_ids),
                )
            )

    def compute_metrics(self, results: list[ImageInstances]) -> dict[str, float]:
        """Compute the AP of all images together."""
        things = np.flatnonzero(self._things())
        category_ids = [self._category_ids()[i] for i in things]
        faster = has_faster_coco_eval()
        scores = self._scores('segm', results, category_ids, faster)
        metrics = {f'segm_{name}': value for name, value in scores.average.items()}
        names = [self.dataset_meta['classes'][i] for i in things]
        percent = np.where(scores.per_class < 0, np.nan, 100 * scores.per_class)
        rows = [(name, *values) for name, values in zip(names, percent, strict=True)]
        log(f'mask AP per class:\n{text_table(("class", "AP", "AP50", "AP75"), rows)}')
        if self.boundary and faster:
            boundary = self._scores('boundary', results, category_ids, faster)
            metrics['boundary_mAP'] = boundary.average['mAP']
        elif self.boundary:
            log('no boundary AP: faster-coco-eval is not installed (pip install faster-coco-eval)')
        return metrics

    def _true_instances(
        self, sample: Sample, size: tuple[int, int], things: np.ndarray, category_ids: Sequence[int]
    ) -> list[dict[str, Any]]:
        if self.ann_file is not None:
            counted = [category_ids[i] for i in np.flatnonzero(things)]
            return self._file().true_instances(sample['img_id'], size, counted)
        truth = true_segments_of(sample)
        if truth.segment_map.shape != size:
            raise ValueError(
                f'{source_of(sample)}: the prediction is {size} pixels (height, width), the ground '
                f'truth {truth.segment_map.shape}'
            )
        return true_instances(truth, things, category_ids)

    def _scores(
        self, kind: str, images: list[ImageInstances], category_ids: list[int], faster: bool
    ) -> InstanceScores:
        num_predicted = sum(len(image.predicted) for image in images)
        num_true = sum(len(image.true) for image in images)
        log(
            f'{kind} AP of {num_predicted} predicted and {num_true} true instances on '
            f'{len(images)} images by {"faster-coco-eval" if faster else "pycocotools"} ...'
        )
        start = time.monotonic()
        scores = instance_scores(images, category_ids, self.max_dets, kind, faster)
        log(f'... done in {time.monotonic() - start:.1f} s')
        return scores

    def _file(self) -> CocoFile:
        if self._truth is None:
            assert self.ann_file is not None
            try:
                content = get(self.ann_file)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f'InstanceMetric has no ann_file {self.ann_file}. {ANN_FILE_HINT}'
                ) from error
            truth = CocoFile.parse(content, self.ann_file)
            self._check_categories(truth)
            self._truth = truth
        return self._truth

    def _check_categories(self, truth: CocoFile) -> None:
        """Refuse a file that lacks a thing: COCO would score that class as if it never occurred."""
        classes, ids = self.dataset_meta['classes'], self.dataset_meta.get('category_ids')
        if ids is None:  # then the ids come from this file
            return
        things = [(classes[i], ids[i]) for i in np.flatnonzero(self._things())]
        missing = [f'{name!r} ({i})' for name, i in things if i not in truth.categories]
        if missing:
            raise ValueError(
                f'{truth.path} lacks things of the data set, by name and category id: '
                f'[{", ".join(missing)}]; it has {truth.categories}. ann_file of the metric must '
                'use the category ids of the data set. Without ann_file the metric reads the '
                'ground truth from the panoptic PNG files'
            )

    def _things(self) -> np.ndarray:
        things = is_thing(self.dataset_meta)
        return np.ones(len(self.dataset_meta['classes']), bool) if things is None else things

    def _category_ids(self) -> Sequence[int]:
        """Return for each class the category id that the files use."""
        category_ids, classes = self.dataset_meta.get('category_ids'), self.dataset_meta['classes']
        if category_ids is not None:
            return category_ids
        if self.ann_file is None:
            return range(len(classes))
        return category_ids_by_name(classes, self._file().categories)
