"""COCO's mask AP."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get

from mmseg_m2f.adapters.metrics import sample_fields as fields
from mmseg_m2f.evaluation import instance_ap
from mmseg_m2f.evaluation.coco_json import CocoFile
from mmseg_m2f.evaluation.rle import import_coco_mask
from mmseg_m2f.evaluation.summary import text_table
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
    """

    default_prefix = 'coco'
    needs = 'instance_on'  # in test_cfg

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

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List the files to be read for a record, each with a hint for when it is missing."""
        if self.ann_file is None:
            return fields.segment_files(record)
        return [(self.ann_file, ANN_FILE_HINT)]

    def process(self, data_batch: Any, data_samples: Sequence[fields.Sample]) -> None:
        """Keep the predicted and true instances of each image, masks as run lengths or polygons."""
        things, category_ids = self._things(), self._category_ids()
        for sample in data_samples:
            masks, labels, scores = fields.instances_of(sample)
            kept = things[labels]
            if not kept.all():
                masks, labels, scores = masks[kept], labels[kept], scores[kept]
            size = masks.shape[1:]
            if self._truth is None:
                true = _true_instances(sample, size, things, category_ids)
            else:
                counted = [category_ids[i] for i in np.flatnonzero(things)]
                true = self._truth.true_instances(sample['img_id'], size, counted)
            predicted = instance_ap.predicted_instances(masks, labels, scores, category_ids)
            self.results.append(
                instance_ap.ImageInstances(
                    image_id=sample['img_id'], size=size, predicted=predicted, true=true
                )
            )

    def compute_metrics(self, results: list[instance_ap.ImageInstances]) -> dict[str, float]:
        """Compute the AP of all images together."""
        things, category_ids = np.flatnonzero(self._things()), self._category_ids()
        faster = instance_ap.has_faster_coco_eval()
        settings = [category_ids[i] for i in things], self.max_dets
        fields.log(
            f'AP of {sum(len(image.predicted) for image in results)} predicted and '
            f'{sum(len(image.true) for image in results)} true instances on {len(results)} images '
            f'by {"faster-coco-eval" if faster else "pycocotools"} ...'
        )
        average, per_class = instance_ap.instance_scores(results, *settings, 'segm', faster)
        metrics = {f'segm_{name}': value for name, value in average.items()}
        names = [self.dataset_meta['classes'][i] for i in things]
        rows = [(name, *values) for name, values in zip(names, 100 * per_class, strict=True)]
        fields.log(f'mask AP per class:\n{text_table(("class", "AP", "AP50", "AP75"), rows)}')
        if self.boundary and faster:
            average, _ = instance_ap.instance_scores(results, *settings, 'boundary', faster)
            metrics['boundary_mAP'] = average['mAP']
        elif self.boundary:
            fields.log('boundary AP needs faster-coco-eval: pip install faster-coco-eval')
        return metrics

    @cached_property
    def _truth(self) -> CocoFile | None:
        if self.ann_file is None:
            return None
        try:
            return CocoFile(get(self.ann_file), self.ann_file)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'InstanceMetric has no ann_file {self.ann_file}. {ANN_FILE_HINT}'
            ) from error

    def _things(self) -> np.ndarray:
        things = fields.is_thing(self.dataset_meta)
        return np.ones(len(self.dataset_meta['classes']), bool) if things is None else things

    def _category_ids(self) -> Sequence[int]:
        """Return for each class the category id that the files use."""
        classes, category_ids = self.dataset_meta['classes'], self.dataset_meta.get('category_ids')
        if self._truth is None:
            return range(len(classes)) if category_ids is None else category_ids
        categories = self._truth.categories
        if category_ids is None:
            return _category_ids_by_name(classes, categories)
        # COCO would score a class that the file lacks as if it never occurred.
        things = [(classes[i], category_ids[i]) for i in np.flatnonzero(self._things())]
        missing = [f'{name!r} ({i})' for name, i in things if i not in categories]
        if missing:
            raise ValueError(
                f'{self.ann_file} lacks things of the data set, by name and category id: '
                f'[{", ".join(missing)}]; it has {categories}. ann_file of the metric must use the '
                'category ids of the data set'
            )
        return category_ids


def _true_instances(
    sample: fields.Sample, size: tuple[int, int], things: np.ndarray, category_ids: Sequence[int]
) -> instance_ap.Instances:
    truth = fields.true_segments_of(sample)
    if truth.segment_map.shape != size:
        raise ValueError(
            f'{fields.source_of(sample)}: the prediction is {size} pixels (height, width), the '
            f'ground truth {truth.segment_map.shape}'
        )
    return instance_ap.true_instances(truth, things, category_ids)


def _category_ids_by_name(classes: Sequence[str], categories: Mapping[int, str]) -> list[int]:
    """Find the category ids for a data set that only names its classes, as mmdet's do.

    mmdet numbers the classes in the order of the file, whatever the order of the names.
    """
    category_ids = [i for i, name in categories.items() if name in classes]
    names = [categories[i] for i in category_ids]
    if sorted(names) != sorted(classes):
        missing = sorted(set(classes) - set(names)) or 'none, but a name occurs twice'
        raise ValueError(
            f"the file's categories are not the data set's classes; classes without category: "
            f'{missing}. Give the data set category_ids, one for each class'
        )
    return category_ids
