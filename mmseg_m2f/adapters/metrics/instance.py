"""Metrics of instances: COCO's AP, of boundaries too, and that of Cityscapes."""

import dataclasses
import tempfile
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from mmengine.logging import print_log

from mmseg_m2f.adapters.metrics.sample_fields import (
    PredictedInstances,
    Sample,
    category_ids_by_name,
    instances_of,
    is_thing,
    segment_files,
    source_of,
    true_segments_of,
)
from mmseg_m2f.evaluation.cityscapes_ap import (
    cityscapes_scores,
    core_name,
    import_evaluator,
    match_image,
    truth_file,
    write_instances,
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
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import METRICS

ANN_FILE_HINT = (
    'The path is relative to where the program runs, not to data_root. Without ann_file the '
    'panoptic PNG files are the truth'
)


@METRICS.register_module()
class InstanceMetric(BaseMetric):
    """COCO's mask AP in [0, 1]: ``segm_mAP``, ``_50``, ``_75``, ``_s``, ``_m``, ``_l``.

    Takes ``pred_instances``. Where faster-coco-eval is installed it computes them, and
    ``boundary_mAP`` too; else pycocotools does: the same numbers. An AP of an area (s, m, l) that
    no true instance has is -1, as COCO has it; where nothing is predicted, or no instance is true
    at all, every AP is 0. Only the images of the test count, and only the
    things of the data set. A table of all classes goes to the log.

    Args:
        ann_file: JSON of the true instances. Default: they are the things of the panoptic PNG
            that each sample names.
        max_dets: so many best-scored instances count per image and class.
        boundary: compute ``boundary_mAP`` if possible.
        collect_device, prefix, collect_dir: MMEngine's.

    Raises:
        ImportError: pycocotools is not installed.
    """

    default_prefix = 'coco'
    # What test_cfg must switch on.
    needs = 'instance_on'

    def __init__(
        self,
        ann_file: str | None = None,
        max_dets: int = 100,
        boundary: bool = True,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        # Now, not at the end of the first test.
        import_coco_mask()
        self.ann_file = ann_file
        self.max_dets = max_dets
        self.boundary = boundary
        self._truth: CocoFile | None = None

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What will be read for a record of the data set, each with a hint if it is missing."""
        return segment_files(record) if self.ann_file is None else [(self.ann_file, ANN_FILE_HINT)]

    def process(self, data_batch: Any, data_samples: Sequence[Sample]) -> None:
        """Keeps the instances of each image as run lengths.

        Raises:
            FileNotFoundError: ``ann_file`` is not there.
            ValueError: it is no such file, lacks a thing of the data set, or does not know a
                image in the size predicted.
        """
        things, category_ids = self._things(), self._category_ids()
        for sample in data_samples:
            masks, labels, scores = instances_of(sample)
            kept = things[labels]
            if not kept.all():
                masks, labels, scores = masks[kept], labels[kept], scores[kept]
            image = ImageInstances(
                image_id=sample['img_id'],
                size=masks.shape[1:],
                predicted=predicted_instances(masks, labels, scores, category_ids),
            )
            if self.ann_file is None:
                image = _with_panoptic_truth(image, sample, things, category_ids)
            else:
                self._file().check_image(image.image_id, image.size)
            self.results.append(image)

    def compute_metrics(self, results: list[ImageInstances]) -> dict[str, float]:
        """The AP of all images together."""
        things = np.flatnonzero(self._things())
        category_ids = [self._category_ids()[i] for i in things]
        images = [self._with_truth(image, category_ids) for image in results]
        faster = has_faster_coco_eval()
        scores = self._scores('segm', images, category_ids, faster)
        metrics = {f'segm_{name}': value for name, value in scores.average.items()}
        names = [self.dataset_meta['classes'][i] for i in things]
        percent = np.where(scores.per_class < 0, np.nan, 100 * scores.per_class)
        rows = [(name, *values) for name, values in zip(names, percent, strict=True)]
        _log(f'mask AP per class:\n{text_table(("class", "AP", "AP50", "AP75"), rows)}')
        if self.boundary and faster:
            boundary = self._scores('boundary', images, category_ids, faster)
            metrics['boundary_mAP'] = boundary.average['mAP']
        elif self.boundary:
            _log('no boundary AP: faster-coco-eval is not installed (pip install faster-coco-eval)')
        return metrics

    def _with_truth(self, image: ImageInstances, category_ids: list[int]) -> ImageInstances:
        if self.ann_file is None:
            return image
        true = self._file().true_instances(image.image_id, image.size, category_ids)
        return dataclasses.replace(image, true=true)

    def _scores(
        self, kind: str, images: list[ImageInstances], category_ids: list[int], faster: bool
    ) -> InstanceScores:
        num_predicted = sum(len(image.predicted) for image in images)
        num_true = sum(len(image.true) for image in images)
        _log(
            f'{kind} AP of {num_predicted} predicted and {num_true} true instances on '
            f'{len(images)} images by {"faster-coco-eval" if faster else "pycocotools"} ...'
        )
        start = time.monotonic()
        scores = instance_scores(images, category_ids, self.max_dets, kind, faster)
        _log(f'... done in {time.monotonic() - start:.1f} s')
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
        """A category that the file lacks would count as one nobody ever sees."""
        classes, ids = self.dataset_meta['classes'], self.dataset_meta.get('category_ids')
        if ids is None:  # they come from the file then
            return
        things = [(classes[i], ids[i]) for i in np.flatnonzero(self._things())]
        missing = [f'{name!r} ({i})' for name, i in things if i not in truth.categories]
        if missing:
            raise ValueError(
                f'{truth.path} lacks things of the data set, by name and category id: '
                f'[{", ".join(missing)}]; it has {truth.categories}. ann_file of the metric must '
                'use the ids of the data set; without it the panoptic PNG files are the truth'
            )

    def _things(self) -> np.ndarray:
        things = is_thing(self.dataset_meta)
        return np.ones(len(self.dataset_meta['classes']), bool) if things is None else things

    def _category_ids(self) -> Sequence[int]:
        """Per class the id that stands for it in the files."""
        category_ids, classes = self.dataset_meta.get('category_ids'), self.dataset_meta['classes']
        if category_ids is not None:
            return category_ids
        if self.ann_file is None:
            return range(len(classes))
        return category_ids_by_name(classes, self._file().categories)


def _with_panoptic_truth(
    image: ImageInstances, sample: Sample, things: np.ndarray, category_ids: Sequence[int]
) -> ImageInstances:
    truth = true_segments_of(sample)
    if truth.segment_map.shape != image.size:
        raise ValueError(
            f'{source_of(sample)}: the predictions are {image.size} pixels (height, width), the '
            f'ground truth {truth.segment_map.shape}'
        )
    return dataclasses.replace(image, true=true_instances(truth, things, category_ids))


@METRICS.register_module()
class CityscapesInstanceMetric(BaseMetric):
    """Cityscapes' instance ``AP`` and ``AP50`` in [0, 1], by cityscapesScripts.

    Takes ``pred_instances``. A table of the classes goes to the log.

    Args:
        gt_dir: folder of the true instances, such as ``data/cityscapes/gtFine/val``; in it, by
            city, ``*_gtFine_instanceIds.png``.
        out_dir: keep the predictions there, in the format of the benchmark. Default: they are
            written for one image at a time and deleted.
        collect_device, prefix, collect_dir: MMEngine's.

    Raises:
        ImportError: cityscapesScripts is not installed.
    """

    default_prefix = 'cityscapes'
    needs = 'instance_on'

    def __init__(
        self,
        gt_dir: str,
        out_dir: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        # Now, not at the end of the first test.
        import_evaluator()
        self.gt_dir = gt_dir
        self.out_dir = out_dir

    def truth_files(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What will be read for a record of the data set, each with a hint if it is missing."""
        if not record:
            return []
        return [(str(truth_file(self.gt_dir, record['img_path'])), '')]

    def process(self, data_batch: Any, data_samples: Sequence[Sample]) -> None:
        """Matches the instances of each image."""
        label_ids = cityscapes_label_ids(self.dataset_meta)
        for sample in data_samples:
            instances = instances_of(sample)
            truth = truth_file(self.gt_dir, sample['img_path'])
            with tempfile.TemporaryDirectory() as folder:
                predicted = write_image(
                    Path(self.out_dir or folder), sample['img_path'], instances, label_ids
                )
                self.results.append(match_image(truth, predicted))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """The AP of all images together."""
        scores = cityscapes_scores(dict(ChainMap(*results)))
        rows = [(name, 100 * ap, 100 * ap50) for name, (ap, ap50) in scores.per_class.items()]
        _log(f'Cityscapes AP per class:\n{text_table(("class", "AP", "AP50"), rows)}')
        if all(np.isnan(ap) for ap, _ in scores.per_class.values()):
            _log('AP is 0: the ground truth has no instance')
        return {'AP': scores.ap, 'AP50': scores.ap50}


def cityscapes_label_ids(meta: Mapping[str, Any]) -> np.ndarray:
    """Cityscapes' label id of each class ``(K,)``: the data set's category ids, or by name.

    Raises:
        ValueError: a class is not one of Cityscapes.
    """
    if meta.get('category_ids') is not None:
        return np.asarray(meta['category_ids'])
    known = load_metadata('cityscapes')
    by_name = dict(zip(known.classes, known.category_ids, strict=True))
    unknown = sorted(set(meta['classes']) - set(by_name))
    if unknown:
        raise ValueError(f'classes that Cityscapes does not have: {unknown[:8]}')
    return np.array([by_name[name] for name in meta['classes']])


def write_image(
    folder: Path, img_path: str, instances: PredictedInstances, label_ids: np.ndarray
) -> Path:
    """One image in the format of the benchmark."""
    masks, labels, scores = instances
    return write_instances(folder, core_name(img_path), masks, label_ids[labels], scores)


def _log(message: str) -> None:
    print_log(message, 'current')
