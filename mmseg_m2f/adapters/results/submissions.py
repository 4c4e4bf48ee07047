"""Predictions of a test as files: label maps, and the formats of the benchmarks."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import collect_results
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from PIL import Image

from mmseg_m2f.adapters.metrics import sample_fields as fields
from mmseg_m2f.adapters.metrics.cityscapes import cityscapes_label_ids
from mmseg_m2f.evaluation.cityscapes_ap import write_instances
from mmseg_m2f.evaluation.instance_ap import Instances, predicted_instances
from mmseg_m2f.evaluation.panoptic_map import id2rgb
from mmseg_m2f.registry import HOOKS


@HOOKS.register_module()
class SaveLabelMapsHook(Hook):
    """Write each prediction of a test into ``out_dir``, as a PNG of the data set's labels.

    The file keeps the image's name, and its folder below the data set's image folder. If the data
    set shifts its labels (``reduce_zero_label``), the hook shifts them back. A file has 16 bits per
    pixel if a label exceeds 255.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for output in outputs:
            sample = output.to_dict()
            label_map = fields.label_map_of(sample).astype(np.int64)
            if sample.get('reduce_zero_label'):
                label_map = label_map + 1
            name = png_name(sample['img_path'], runner.test_dataloader.dataset)
            _save_labels(self.out_dir / name, label_map)


@HOOKS.register_module()
class SaveResultsHook(Hook):
    """Write each kind of result that the model gives into ``out_dir``.

    * ``panoptic/*.png`` and ``panoptic.json``: COCO's panoptic format.
    * ``instances.json``: COCO's result format, with masks as run lengths and without boxes.
    * ``semantic/*.png``: the class index of each pixel. On Cityscapes the label ids that its
      benchmark expects. A file has 16 bits per pixel if one of its values exceeds 255.
    * ``cityscapes/``: on Cityscapes, the format of its instance benchmark.

    Category ids are those of the data set (``category_ids`` in its metainfo). A file keeps the
    image's name, and its folder below the data set's image folder.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def before_test(self, runner: Runner) -> None:
        # The content of the JSON files, by image in the order of the test.
        self._panoptic: list[dict[str, Any]] = []
        self._instances: list[Instances] = []
        self._images: dict[Path, str] = {}  # by the name of their files

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        dataset = runner.test_dataloader.dataset
        for output in outputs:
            sample = output.to_dict()
            name = self._name(sample['img_path'], dataset)
            if 'pred_panoptic_seg' in sample:
                self._panoptic.append(self._save_segments(sample, name, dataset))
            if 'pred_instances' in sample:
                self._instances.append(self._save_instances(sample, dataset))
            if 'pred_sem_seg' in sample:
                label_map = fields.label_map_of(sample)
                if _is_cityscapes(dataset):
                    label_map = cityscapes_label_ids(dataset.metainfo)[label_map]
                _save_labels(self.out_dir / 'semantic' / name, label_map)

    def after_test(self, runner: Runner) -> None:
        """Write the JSON files from the results of all processes, each image once."""
        num_images = len(runner.test_dataloader.dataset)
        panoptic = collect_results(self._panoptic, num_images)
        instances = collect_results(self._instances, num_images)
        if panoptic:  # None in all processes but the main one
            _save_json(self.out_dir / 'panoptic.json', {'annotations': panoptic})
        if instances:
            _save_json(self.out_dir / 'instances.json', list(itertools.chain(*instances)))

    def _name(self, img_path: str, dataset: Any) -> Path:
        name = png_name(img_path, dataset)
        other = self._images.setdefault(name, img_path)
        if other != img_path:
            raise ValueError(
                f'the results of {other} and of {img_path} would both be named {name}: set '
                'data_prefix.img of the data set to the folder that both paths start with'
            )
        return name

    def _save_segments(self, sample: fields.Sample, name: Path, dataset: Any) -> dict[str, Any]:
        segment_map, labels = fields.panoptic_of(sample, len(dataset.metainfo['classes']))
        colors = Image.fromarray(id2rgb(segment_map))
        colors.save(with_folder(self.out_dir / 'panoptic' / name))
        category_ids = _category_ids(dataset)
        areas = np.bincount(segment_map.ravel(), minlength=1 + len(labels))[1:]
        segments_info = [
            {'id': number, 'category_id': int(category_ids[label]), 'area': int(area)}
            for number, (label, area) in enumerate(zip(labels, areas, strict=True), 1)
        ]
        found = {'image_id': sample['img_id'], 'file_name': name.as_posix()}
        return {**found, 'segments_info': segments_info}

    def _save_instances(self, sample: fields.Sample, dataset: Any) -> Instances:
        masks, labels, scores = fields.instances_of(sample)
        if _is_cityscapes(dataset):
            label_ids = cityscapes_label_ids(dataset.metainfo)[labels]
            folder = self.out_dir / 'cityscapes'
            write_instances(folder, sample['img_path'], masks, label_ids, scores)
        listed = predicted_instances(masks, labels, scores, _category_ids(dataset))
        return [{'image_id': sample['img_id'], **instance} for instance in listed]


def with_folder(path: Path) -> Path:
    """Create the folder that the file will lie in; return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def png_name(img_path: str, dataset: Any) -> Path:
    """Return an image's path below the data set's image folder, or else its name, as ``.png``."""
    image, prefix = Path(img_path), getattr(dataset, 'data_prefix', {})
    root = prefix.get('img_path') or prefix.get('img')
    inside = image.relative_to(root) if root and image.is_relative_to(root) else Path(image.name)
    return inside.with_suffix('.png')


def _save_labels(path: Path, label_map: np.ndarray) -> None:
    dtype = np.uint8 if label_map.max(initial=0) < 256 else np.uint16
    Image.fromarray(label_map.astype(dtype)).save(with_folder(path))


def _save_json(path: Path, content: Any) -> None:
    with_folder(path).write_text(json.dumps(content))
    print_log(f'wrote {path}', 'current')


def _is_cityscapes(dataset: Any) -> bool:
    return (dataset.metainfo.get('metadata') or '').startswith('cityscapes')


def _category_ids(dataset: Any) -> Sequence[int]:
    # mmdet's data sets have them in cat_ids.
    for category_ids in (dataset.metainfo.get('category_ids'), getattr(dataset, 'cat_ids', None)):
        if category_ids is not None:
            return category_ids
    raise ValueError(
        f'the result files need category ids: {type(dataset).__name__} has neither category_ids in '
        'its metainfo nor cat_ids. Give it metainfo=dict(category_ids=[...]), one for each class'
    )
