"""Data sets in COCO's panoptic and instance format.

The class of a segment or instance is the position of its category in the JSON file, so category ids
may be 0, have gaps and come in any order. With ``metadata`` it is the class of the published
models. The classes are printed once.
"""

import os.path as osp
from collections.abc import Mapping
from typing import Any, ClassVar

from mmengine.dataset import BaseDataset

from mmseg_m2f.adapters.data import coco_classes
from mmseg_m2f.evaluation import coco_json
from mmseg_m2f.evaluation.coco_json import Json
from mmseg_m2f.registry import DATASETS

# cityscapesScripts writes the first ending into its JSON, and no folder; the files have the second,
# in a folder for each city.
SCRIPTS_ENDING = '_gtFine_leftImg8bit.png'
CITYSCAPES_ENDING = '_leftImg8bit.png'
# The largest id that fits into the three bytes of a color.
MAX_ID = 256**3 - 1


class CocoFormatDataset(BaseDataset):
    """The part common to `PanopticDataset` and `InstanceDataset`; see there for the arguments."""

    prefixes: ClassVar[tuple[str, ...]]
    # The key of a record that lists its segments or instances.
    listed: ClassVar[str]

    def __init__(
        self,
        ann_file: str,
        data_prefix: Mapping[str, str],
        metadata: str | None = None,
        metainfo: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if 'img' not in data_prefix or not set(data_prefix) <= set(self.prefixes):
            raise ValueError(
                f'data_prefix needs img and knows {self.prefixes}, got {dict(data_prefix)}'
            )
        self.metadata = metadata
        super().__init__(
            ann_file=ann_file,
            data_prefix=dict(data_prefix),
            metainfo=coco_classes.initial_metainfo(metadata, metainfo),
            **settings,
        )
        self._metainfo['metadata'] = metadata

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the classes in an image, for MMEngine's ``ClassBalancedDataset``."""
        return [entry['label'] for entry in self.get_data_info(idx)[self.listed]]

    def _read(self) -> Json:
        """Read the JSON file; write its classes into ``metainfo`` and into the log."""
        coco_classes.log_once(f'reading {self.ann_file}')
        if not osp.isfile(self.ann_file):
            raise FileNotFoundError(
                f'there is no annotation file {self.ann_file}; check data_root and ann_file of the '
                'data set'
            )
        with open(self.ann_file, 'rb') as file:
            text = file.read()
        keys = ('file_name', 'id', 'height', 'width')
        content = coco_json.parse_coco(text, self.ann_file, keys)
        categories, only_things = content['categories'], self.listed == 'instances'
        classes = coco_classes.class_metainfo(
            self.ann_file, categories, self._metainfo, only_things
        )
        self._metainfo.update(classes)
        coco_classes.log_classes(classes)
        # None for the categories that are not chosen.
        self._labels: dict[int, int | None] = {category['id']: None for category in categories}
        self._labels |= {number: label for label, number in enumerate(classes['category_ids'])}
        return content

    def _annotations(self, content: Json, keys: tuple[str, ...]) -> list[Json]:
        """Return the annotations, each of which has these keys."""
        content = {'annotations': []} | content
        annotations = coco_json.entries_of(self.ann_file, content, 'annotations')
        coco_json.check_keys(self.ann_file, 'annotation', annotations, keys)
        return annotations

    def _label(self, entry: Json, image: Json) -> int | None:
        """Return the class index of a segment or instance; None if its category is not chosen."""
        category_id = entry['category_id']
        # The type comes first: a list could not be looked up.
        if not isinstance(category_id, int) or category_id not in self._labels:
            raise ValueError(
                f'{self.ann_file}: an annotation of {image["file_name"]} has category_id '
                f'{category_id!r}, which the categories do not list: {sorted(self._labels)}'
            )
        return self._labels[category_id]

    def _record(self, image: Json) -> dict[str, Any]:
        """Return what is known of an image without its annotation."""
        return {
            'img_path': osp.join(self.data_prefix['img'], image_path(image['file_name'])),
            'img_id': image['id'],
            'height': image['height'],
            'width': image['width'],
        }


def image_path(file_name: str) -> str:
    """Return where an image lies in the image folder."""
    if '/' in file_name or not file_name.endswith(SCRIPTS_ENDING):
        return file_name
    city = file_name.split('_')[0]
    return f'{city}/{file_name.removesuffix(SCRIPTS_ENDING)}{CITYSCAPES_ENDING}'


@DATASETS.register_module()
class PanopticDataset(CocoFormatDataset):
    """Images with panoptic segments, from a JSON file and a folder of PNG files.

    Images without things are kept.

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
    """

    prefixes = ('img', 'seg', 'label_map')
    listed = 'segments_info'

    def __init__(self, *args: Any, label_map_suffix: str = '.png', **settings: Any) -> None:
        self.label_map_suffix = label_map_suffix
        super().__init__(*args, **settings)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return a record per image: ``img_path``, ``img_id``, ``height``, ``width``.

        Where there are label maps it has ``label_map_path``. From the annotation come
        ``seg_map_path``, ``segments_info`` and ``num_classes``. A test set may have no annotations,
        as COCO's test-dev.
        """
        content = self._read()
        categories = content['categories']
        wrong = [entry['name'] for entry in categories if entry.get('isthing') not in (0, 1)]
        if wrong:
            raise ValueError(
                f'{self.ann_file} is not in the panoptic format of COCO: isthing must be 1 (thing) '
                f'or 0 (stuff) in each category; it is not in {wrong}'
            )
        has_label_maps = self._has_label_maps(content)
        is_annotated = bool(content.get('annotations')) or not self.test_mode
        annotations = self._by_image(content) if is_annotated else {}
        records = []
        for image in content['images']:
            record = self._record(image)
            if has_label_maps:
                record['label_map_path'] = self._label_map_path(image)
            if is_annotated:
                record |= self._truth(annotations[image['id']], image)
            records.append(record)
        return records

    def _has_label_maps(self, content: Json) -> bool:
        """Return True if there are label maps whose labels are these classes."""
        if 'label_map' not in self.data_prefix:
            return False
        in_order = tuple(category['id'] for category in content['categories'])
        if self.metadata or self._metainfo['category_ids'] == in_order:
            return True
        coco_classes.log_once(
            f'{self.ann_file}: the classes are not in the order of the label maps in '
            f'{self.data_prefix["label_map"]}, which are not read: mIoU takes the panoptic PNG'
        )
        return False

    def _label_map_path(self, image: Json) -> str:
        name = image_path(image['file_name'])
        is_cityscapes = name.endswith(CITYSCAPES_ENDING)
        stem = name.removesuffix(CITYSCAPES_ENDING) if is_cityscapes else osp.splitext(name)[0]
        return osp.join(self.data_prefix['label_map'], f'{stem}{self.label_map_suffix}')

    def _by_image(self, content: Json) -> dict[Any, Json]:
        """Map each image id to its annotation."""
        path = self.ann_file
        if 'seg' not in self.data_prefix:
            raise ValueError(
                f'data_prefix needs the key seg, the folder of the PNG files of {path}'
            )
        if 'segmentation' in next(iter(content.get('annotations') or []), {}):
            raise ValueError(f'{path} is in the instance format: use mmseg_m2f.InstanceDataset')
        annotations = self._annotations(content, ('file_name', 'image_id', 'segments_info'))
        ids = [annotation['image_id'] for annotation in annotations]
        coco_json.check_unique(path, 'annotation of image', ids)
        by_image = dict(zip(ids, annotations, strict=True))
        for image in content['images']:
            if image['id'] not in by_image:
                raise ValueError(
                    f'{path} has no annotation of {image["file_name"]} (image {image["id"]!r}). '
                    'Add one, or remove the image from the list of images.'
                )
        return by_image

    def _truth(self, annotation: Json, image: Json) -> dict[str, Any]:
        """Return what a record has from its annotation."""
        where = f'{self.ann_file}: {annotation["file_name"]}'
        given = coco_json.entries_of(where, annotation, 'segments_info')
        coco_json.check_keys(where, 'segment', given, ('id', 'category_id'))
        ids = [segment['id'] for segment in given]
        wrong = [i for i in ids if type(i) is not int or not 0 < i <= MAX_ID]
        if wrong:
            raise ValueError(
                f'{where}: segment ids must be whole numbers from 1 to {MAX_ID}, the largest '
                f'number in three bytes of a color (0, black, is no segment); got {wrong[:8]}'
            )
        coco_json.check_unique(where, 'segment', ids)
        segments = [
            {
                'id': segment['id'],
                'label': label,
                'is_thing': label in self._metainfo['thing_ids'],
                'is_crowd': bool(segment.get('iscrowd', 0)),
                'area': segment.get('area'),
            }
            for segment in given
            if (label := self._label(segment, image)) is not None
        ]
        return {
            'seg_map_path': osp.join(self.data_prefix['seg'], annotation['file_name']),
            'segments_info': segments,
            'num_classes': len(self._metainfo['classes']),
        }


@DATASETS.register_module()
class InstanceDataset(CocoFormatDataset):
    """Images with instances, from one JSON file. All classes are things.

    Args:
        ann_file: the JSON file.
        data_prefix: ``img``, the folder of the images.
        metadata, metainfo: as in `PanopticDataset`.
        filter_empty: leave out images without an instance that is no crowd, as the official code
            does for training on COCO. Test sets keep all images.
        settings: of MMEngine's ``BaseDataset``: ``data_root``, ``pipeline``, ``test_mode``, ...
    """

    prefixes = ('img',)
    listed = 'instances'

    def __init__(self, *args: Any, filter_empty: bool = False, **settings: Any) -> None:
        self.filter_empty = filter_empty
        super().__init__(*args, **settings)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return a record per image: path, id, size and ``instances``.

        An annotation without an area (no mask, or only polygons of fewer than three points) is
        left out, as in the official code.
        """
        content = self._read()
        images = {image['id']: image for image in content['images']}
        instances: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        num_invalid = 0
        for entry in self._annotations(content, ('category_id', 'image_id')):
            if entry['image_id'] not in images:
                raise ValueError(
                    f'{self.ann_file}: an annotation is of image {entry["image_id"]!r}, which '
                    'is not listed'
                )
            label = self._label(entry, images[entry['image_id']])
            shape = coco_json.valid_shape(self.ann_file, entry)
            num_invalid += shape is None
            if label is not None and shape is not None:
                instance = {
                    'label': label,
                    'segmentation': shape,
                    'is_crowd': bool(entry.get('iscrowd', 0)),
                    'bbox': entry.get('bbox'),
                }
                instances[entry['image_id']].append(instance)
        if num_invalid:
            coco_classes.log_once(
                f'{self.ann_file}: {num_invalid} annotations have no mask and are left out'
            )
        return [
            self._record(image) | {'instances': instances[image_id]}
            for image_id, image in images.items()
        ]

    def filter_data(self) -> list[dict[str, Any]]:
        """Leave out images without instances if ``filter_empty`` is set."""
        if self.test_mode or not self.filter_empty:
            return self.data_list
        kept = [
            record
            for record in self.data_list
            if not all(instance['is_crowd'] for instance in record['instances'])
        ]
        if not kept:
            raise ValueError(
                f'{self.ann_file}: none of its {len(self.data_list)} images has an instance that '
                'is no crowd. Check ann_file, or keep such images by filter_empty=False.'
            )
        return kept
