"""A data set in COCO's panoptic format."""

import os.path as osp
from collections.abc import Mapping
from typing import Any

from mmseg_m2f.adapters.data.coco_classes import (
    ClassTable,
    CocoFormatDataset,
    class_table,
    label_of_category,
    log_once,
    read_json,
)
from mmseg_m2f.evaluation.coco_json import Json, check_keys, check_unique, entries_of
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import DATASETS

# cityscapesScripts writes the first ending into its JSON, and no folder; the files have the second.
SCRIPTS_ENDING = '_gtFine_leftImg8bit.png'
CITYSCAPES_ENDING = '_leftImg8bit.png'
# The largest id that fits into the three bytes of a color.
MAX_ID = 256**3 - 1


@DATASETS.register_module()
class PanopticDataset(CocoFormatDataset):
    """Images with panoptic segments, from a JSON file and a folder of PNG files.

    The class of a segment is the position of its category in the JSON file, so category ids may be
    0, have gaps and come in any order. With ``metadata`` it is the class of the published models.
    Images without things are kept. The classes are printed once.

    Args:
        ann_file: the JSON file.
        data_prefix: folders. ``img`` holds the images and ``seg`` the panoptic PNG files.
            ``label_map``, if given, holds a label map for each image, used for mIoU.
        metadata: a name of ``mmseg_m2f.metadata``. The file must have these categories.
        metainfo: MMEngine's. ``classes`` chooses categories by name, and sets their order. Label
            maps are not read then, because their labels follow the order of the file or of
            ``metadata``. ``thing_ids`` are the indices of the classes that are things, if not
            those of the file.
        label_map_suffix: ending of a label map's name, in place of the image's ``.jpg``, ``.png``
            or ``_leftImg8bit.png``.
        settings: of MMEngine's ``BaseDataset``: ``data_root``, ``pipeline``, ``test_mode``, ...

    Raises:
        ValueError: the file is not in this format, lacks the annotation of an image, or uses a
            category that it does not list.
    """

    prefixes = ('img', 'seg', 'label_map')
    listed = 'segments_info'

    def __init__(
        self,
        ann_file: str,
        data_prefix: Mapping[str, str],
        metadata: str | None = None,
        metainfo: Mapping[str, Any] | None = None,
        label_map_suffix: str = '.png',
        **settings: Any,
    ) -> None:
        self.label_map_suffix = label_map_suffix
        self.metadata = metadata
        super().__init__(ann_file, data_prefix, metadata, metainfo, **settings)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return a record per image: ``img_path``, ``img_id``, ``height``, ``width``.

        From the annotation come ``seg_map_path``, ``segments_info``, ``num_classes`` and
        ``label_map_path``. A test set without annotations (COCO's test-dev) has none of these.
        """
        content = read_json(self.ann_file)
        categories = content['categories']
        _check_categories(self.ann_file, categories)
        table = class_table(self.ann_file, categories, self._metainfo)
        self.set_classes(table)
        self._has_label_maps = self._fits_label_maps(table, categories)
        if self.test_mode and not content.get('annotations'):
            return [self._image_record(image) for image in content['images']]
        annotations = _by_image(self.ann_file, content, self.data_prefix)
        known = {category['id'] for category in categories}
        label_of, things = table.label_of, set(table.thing_ids)
        records = []
        for image in content['images']:
            annotation = annotations[image['id']]
            segments = []
            for segment in annotation['segments_info']:
                label = label_of_category(self.ann_file, label_of, known, segment, image)
                if label is not None:
                    segments.append(_segment(segment, label, label in things))
            record = self._image_record(image)
            record['seg_map_path'] = osp.join(self.data_prefix['seg'], annotation['file_name'])
            record['segments_info'] = segments
            record['num_classes'] = len(table.classes)
            records.append(record)
        return records

    def _fits_label_maps(self, table: ClassTable, categories: list[Json]) -> bool:
        """Return True if there are label maps whose labels are these classes."""
        if 'label_map' not in self.data_prefix:
            return False
        known = load_metadata(self.metadata).category_ids if self.metadata else None
        if table.category_ids in (known, tuple(category['id'] for category in categories)):
            return True
        log_once(
            f'{self.ann_file}: the classes are not in the order of the label maps in '
            f'{self.data_prefix["label_map"]}, which are not read: mIoU takes the panoptic PNG'
        )
        return False

    def _image_record(self, image: Json) -> dict[str, Any]:
        name = image_path(image['file_name'])
        record = self.image_record(image, name)
        if self._has_label_maps:
            is_cityscapes = name.endswith(CITYSCAPES_ENDING)
            stem = name.removesuffix(CITYSCAPES_ENDING) if is_cityscapes else osp.splitext(name)[0]
            label_map = f'{stem}{self.label_map_suffix}'
            record['label_map_path'] = osp.join(self.data_prefix['label_map'], label_map)
        return record


def image_path(file_name: str) -> str:
    """Return where an image lies in the image folder.

    This is the ``file_name`` of the JSON, except for names of cityscapesScripts: they become
    ``CITY/CITY_..._leftImg8bit.png``.
    """
    if '/' in file_name or not file_name.endswith(SCRIPTS_ENDING):
        return file_name
    city = file_name.split('_')[0]
    return f'{city}/{file_name.removesuffix(SCRIPTS_ENDING)}{CITYSCAPES_ENDING}'


def _check_categories(path: str, categories: list[Json]) -> None:
    wrong = [category['name'] for category in categories if category.get('isthing') not in (0, 1)]
    if wrong:
        raise ValueError(
            f'{path} is not in the panoptic format of COCO: isthing must be 1 (thing) or 0 '
            f'(stuff) in each category; it is not in {wrong}'
        )


def _by_image(path: str, content: Json, data_prefix: Mapping[str, str]) -> dict[Any, Json]:
    """Map each image id to its annotation."""
    annotations = entries_of(path, {'annotations': [], **content}, 'annotations')
    if 'seg' not in data_prefix:
        raise ValueError(f'data_prefix needs the key seg, the folder of the PNG files of {path}')
    if annotations and 'segmentation' in annotations[0]:
        raise ValueError(
            f'{path} is in the instance format of COCO, which mmseg_m2f.InstanceDataset reads'
        )
    check_keys(path, 'annotation', annotations, ('file_name', 'image_id', 'segments_info'))
    for annotation in annotations:
        _check_segments(f'{path}: {annotation["file_name"]}', annotation)
    check_unique(path, 'annotation of image', (entry['image_id'] for entry in annotations))
    by_image = {annotation['image_id']: annotation for annotation in annotations}
    for image in content['images']:
        if image['id'] not in by_image:
            raise ValueError(
                f'{path} has no annotation of {image["file_name"]} (image {image["id"]!r}). Add '
                'one, or remove the image from the list of images.'
            )
    return by_image


def _check_segments(where: str, annotation: Json) -> None:
    segments = entries_of(where, annotation, 'segments_info')
    check_keys(where, 'segment', segments, ('id', 'category_id'))
    wrong = [
        segment['id']
        for segment in segments
        if type(segment['id']) is not int or not 0 < segment['id'] <= MAX_ID
    ]
    if wrong:
        raise ValueError(
            f'{where}: segment ids must be whole numbers from 1 to {MAX_ID}, the largest number '
            f'in three bytes of a color (0, black, is no segment); got {wrong[:8]}'
        )
    check_unique(where, 'segment', (segment['id'] for segment in segments))


def _segment(segment: Json, label: int, is_thing: bool) -> dict[str, Any]:
    return {
        'id': segment['id'],
        'label': label,
        'is_thing': is_thing,
        'is_crowd': bool(segment.get('iscrowd', 0)),
        'area': segment.get('area'),
    }
