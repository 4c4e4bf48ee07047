"""Predictions of a test as the files that benchmarks take."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import collect_results
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from PIL import Image

from mmseg_m2f.adapters.metrics.cityscapes import cityscapes_label_ids, write_image
from mmseg_m2f.adapters.metrics.sample_fields import Sample, instances_of, label_map_of, panoptic_of
from mmseg_m2f.evaluation.instance_ap import predicted_instances
from mmseg_m2f.evaluation.panoptic_map import Segments, write_ids
from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class SaveResultsHook(Hook):
    """Writes the results of a test below ``out_dir``, each kind that the model gives.

    * ``panoptic/*.png`` and ``panoptic.json``: COCO's panoptic format;
    * ``instances.json``: COCO's result format, masks as run lengths, no boxes;
    * ``semantic/*.png``: the class index of each pixel, or on Cityscapes the label ids that its
      benchmark wants; 16 bits beyond 256 classes;
    * ``cityscapes/``: the format of Cityscapes' instance benchmark, where the data set's metadata
      is Cityscapes'.

    Categories are the ids of the data set (``category_ids`` in its metainfo), files are named like
    the images, in their folders below the data set's image folder.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        # Per image, in the order of the test, what goes into the JSON files.
        self._entries: list[dict[str, Any]] = []
        # Per file name the image it is of.
        self._images: dict[Path, str] = {}

    def before_test(self, runner: Runner) -> None:
        """Forgets an earlier test."""
        self._entries, self._images = [], {}

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Saves what is one file per image, and keeps the rest for the end."""
        dataset = runner.test_dataloader.dataset
        for output in outputs or ():
            sample = output.to_dict()
            name = self._name(sample['img_path'], dataset)
            entry: dict[str, Any] = {}
            if 'pred_panoptic_seg' in sample:
                entry['panoptic'] = self._save_segments(sample, name, dataset)
            if 'pred_instances' in sample:
                entry['instances'] = self._save_instances(sample, dataset)
            if 'pred_sem_seg' in sample:
                label_map = _values(label_map_of(sample), dataset.metainfo)
                Image.fromarray(label_map).save(self._path('semantic', name))
            self._entries.append(entry)

    def _name(self, img_path: str, dataset: Any) -> Path:
        name = _inner_path(img_path, dataset).with_suffix('.png')
        other = self._images.setdefault(name, img_path)
        if other != img_path:
            raise ValueError(
                f'the results of {other} and of {img_path} would both be named {name}: rename one, '
                "or put what their folders have in common into the data set's data_prefix.img"
            )
        return name

    def after_test(self, runner: Runner) -> None:
        """Writes the JSON files: the results of all processes, each image once."""
        entries = collect_results(self._entries, len(runner.test_dataloader.dataset))
        if entries is None:  # not the main process
            return
        panoptic = [entry['panoptic'] for entry in entries if 'panoptic' in entry]
        instances = [entry['instances'] for entry in entries if 'instances' in entry]
        if panoptic:
            self._write('panoptic.json', {'annotations': panoptic})
        if instances:
            self._write('instances.json', list(itertools.chain(*instances)))

    def _save_segments(self, sample: Sample, name: Path, dataset: Any) -> dict[str, Any]:
        segments = panoptic_of(sample, len(dataset.metainfo['classes']))
        write_ids(self._path('panoptic', name), segments.segment_map)
        return {
            'image_id': sample['img_id'],
            'file_name': name.as_posix(),
            'segments_info': _segments_info(segments, _category_ids(dataset)),
        }

    def _save_instances(self, sample: Sample, dataset: Any) -> list[dict[str, Any]]:
        instances = instances_of(sample)
        if _is_cityscapes(dataset.metainfo):
            label_ids = cityscapes_label_ids(dataset.metainfo)
            write_image(self.out_dir / 'cityscapes', sample['img_path'], instances, label_ids)
        listed = predicted_instances(*instances, _category_ids(dataset))
        return [{'image_id': sample['img_id'], **instance} for instance in listed]

    def _path(self, folder: str, name: Path) -> Path:
        path = self.out_dir / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write(self, name: str, content: Any) -> None:
        path = self.out_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        print_log(f'wrote {path}', 'current')


def _segments_info(segments: Segments, category_ids: Sequence[int]) -> list[dict[str, int]]:
    areas = np.bincount(segments.segment_map.ravel(), minlength=1 + len(segments.labels))[1:]
    return [
        {'id': number, 'category_id': int(category_ids[label]), 'area': area}
        for number, (label, area) in enumerate(
            zip(segments.labels.tolist(), areas.tolist(), strict=True), 1
        )
    ]


def _values(label_map: np.ndarray, metainfo: Mapping[str, Any]) -> np.ndarray:
    if _is_cityscapes(metainfo):
        label_map = cityscapes_label_ids(metainfo)[label_map]
    return label_map.astype(np.uint8 if len(metainfo['classes']) <= 256 else np.uint16)


def _is_cityscapes(metainfo: Mapping[str, Any]) -> bool:
    return (metainfo.get('metadata') or '').startswith('cityscapes')


def _category_ids(dataset: Any) -> Sequence[int]:
    """Per class the id that the data set's files have for it; mmdet's sets know it, too."""
    category_ids = dataset.metainfo.get('category_ids')
    if category_ids is None:
        category_ids = getattr(dataset, 'cat_ids', None)
    if category_ids is None:
        raise ValueError(
            'the result files name categories by their ids: the data set needs category_ids in '
            'its metainfo, one for each class'
        )
    return category_ids


def _inner_path(img_path: str, dataset: Any) -> Path:
    image = Path(img_path)
    folder = getattr(dataset, 'data_prefix', {}).get('img')
    if folder and image.is_relative_to(folder):
        return image.relative_to(folder)
    return Path(image.name)
