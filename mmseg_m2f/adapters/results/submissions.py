"""Predictions of a test in the file formats of the benchmarks."""

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

from mmseg_m2f.adapters.metrics.cityscapes import cityscapes_label_ids
from mmseg_m2f.adapters.metrics.sample_fields import Sample, instances_of, label_map_of, panoptic_of
from mmseg_m2f.adapters.results.label_maps import png_name, with_folder
from mmseg_m2f.evaluation.cityscapes_ap import write_instances
from mmseg_m2f.evaluation.instance_ap import predicted_instances
from mmseg_m2f.evaluation.panoptic_map import Segments, write_ids
from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class SaveResultsHook(Hook):
    """Write each kind of result that the model gives.

    * ``panoptic/*.png`` and ``panoptic.json``: COCO's panoptic format.
    * ``instances.json``: COCO's result format, with masks as run lengths and without boxes.
    * ``semantic/*.png``: the class index of each pixel. On Cityscapes the label ids that its
      benchmark expects. 16 bits per pixel if there are more than 256 classes.
    * ``cityscapes/``: the format of Cityscapes' instance benchmark, if the data set's metadata is
      that of Cityscapes.

    Category ids are those of the data set (``category_ids`` in its metainfo). A file keeps the
    image's name, and its folder below the data set's image folder.

    Args:
        out_dir: folder to write into.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        # Per image, in the order of the test: its part of the JSON files.
        self._entries: list[dict[str, Any]] = []
        # File name to the image it belongs to.
        self._images: dict[Path, str] = {}

    def before_test(self, runner: Runner) -> None:
        """Forget an earlier test."""
        self._entries, self._images = [], {}

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Save the files of each image, and keep the entries of the JSON files for the end."""
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
                Image.fromarray(label_map).save(with_folder(self.out_dir / 'semantic' / name))
            self._entries.append(entry)

    def _name(self, img_path: str, dataset: Any) -> Path:
        name = png_name(img_path, dataset)
        other = self._images.setdefault(name, img_path)
        if other != img_path:
            raise ValueError(
                f'the results of {other} and of {img_path} would both be named {name}. Rename one, '
                "or set the data set's data_prefix.img to the folder that both paths start with"
            )
        return name

    def after_test(self, runner: Runner) -> None:
        """Write the JSON files from the results of all processes, each image once."""
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
        write_ids(with_folder(self.out_dir / 'panoptic' / name), segments.segment_map)
        return {
            'image_id': sample['img_id'],
            'file_name': name.as_posix(),
            'segments_info': _segments_info(segments, _category_ids(dataset)),
        }

    def _save_instances(self, sample: Sample, dataset: Any) -> list[dict[str, Any]]:
        masks, labels, scores = instances_of(sample)
        if _is_cityscapes(dataset.metainfo):
            label_ids = cityscapes_label_ids(dataset.metainfo)[labels]
            folder = self.out_dir / 'cityscapes'
            write_instances(folder, sample['img_path'], masks, label_ids, scores)
        listed = predicted_instances(masks, labels, scores, _category_ids(dataset))
        return [{'image_id': sample['img_id'], **instance} for instance in listed]

    def _write(self, name: str, content: Any) -> None:
        path = with_folder(self.out_dir / name)
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
    """Return the category id of each class; mmdet's data sets have them in ``cat_ids``."""
    category_ids = dataset.metainfo.get('category_ids')
    if category_ids is None:
        category_ids = getattr(dataset, 'cat_ids', None)
    if category_ids is None:
        raise ValueError(
            'the result files need category ids: give the data set category_ids in its metainfo, '
            'one for each class'
        )
    return category_ids
