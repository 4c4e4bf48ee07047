"""A data set in COCO's instance format."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from mmseg_m2f.adapters.data.coco_classes import (
    CocoFormatDataset,
    class_table,
    label_of_category,
    read_json,
)
from mmseg_m2f.evaluation.coco_json import Json, check_keys, entries_of, valid_shape
from mmseg_m2f.registry import DATASETS


@DATASETS.register_module()
class InstanceDataset(CocoFormatDataset):
    """Images with instances, from one JSON file. All classes are things.

    The class of an instance is the position of its category in the JSON file, whatever the
    category's id is. With ``metadata`` it is the class of the published models. The classes are
    printed once.

    Args:
        ann_file: the JSON file.
        data_prefix: ``img``, the folder of the images.
        metadata: a name of ``mmseg_m2f.metadata``. The file must have these categories.
        metainfo: MMEngine's. ``classes`` chooses categories by name, and sets their order.
        filter_empty: leave out images without an instance that is no crowd, as the official code
            does for training on COCO. Test sets keep all images.
        settings: of MMEngine's ``BaseDataset``: ``data_root``, ``pipeline``, ``test_mode``, ...

    Raises:
        ValueError: the file is not in this format, uses a category that it does not list, or
            ``filter_empty`` leaves no image.
    """

    listed = 'instances'

    def __init__(
        self,
        ann_file: str,
        data_prefix: Mapping[str, str],
        metadata: str | None = None,
        metainfo: Mapping[str, Any] | None = None,
        filter_empty: bool = False,
        **settings: Any,
    ) -> None:
        self.filter_empty = filter_empty
        super().__init__(ann_file, data_prefix, metadata, metainfo, **settings)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return a record per image: path, id, size and ``instances``.

        An annotation without an area (no mask, or only polygons of fewer than three points) is
        left out, as in the official code.
        """
        content = read_json(self.ann_file)
        table = class_table(self.ann_file, content['categories'], self._metainfo)
        table = table._replace(thing_ids=tuple(range(len(table.classes))))
        self.set_classes(table)
        instances = self._instances(content, table.label_of)
        return [
            self.image_record(image, image['file_name']) | {'instances': instances[image['id']]}
            for image in content['images']
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
                'is no crowd, so there is nothing to train on. Check ann_file; filter_empty=False '
                'keeps images without instances.'
            )
        return kept

    def _instances(self, content: Json, label_of: Mapping[int, int]) -> defaultdict[Any, list]:
        """Map each image id to its instances."""
        known = {category['id'] for category in content['categories']}
        images = {image['id']: image for image in content['images']}
        instances: defaultdict[Any, list] = defaultdict(list)
        num_invalid = 0
        annotations = entries_of(self.ann_file, {'annotations': [], **content}, 'annotations')
        check_keys(self.ann_file, 'annotation', annotations, ('category_id', 'image_id'))
        for entry in annotations:
            image = images.get(entry['image_id'])
            if image is None:
                raise ValueError(
                    f'{self.ann_file}: an annotation is of image {entry["image_id"]!r}, which is '
                    'not listed'
                )
            label = label_of_category(self.ann_file, label_of, known, entry, image)
            shape = valid_shape(self.ann_file, entry)
            num_invalid += shape is None
            if label is not None and shape is not None:
                instances[entry['image_id']].append(
                    {
                        'label': label,
                        'segmentation': shape,
                        'is_crowd': bool(entry.get('iscrowd', 0)),
                        'bbox': entry.get('bbox'),
                    }
                )
        if num_invalid:
            print_log(
                f'{self.ann_file}: {num_invalid} annotations have no mask and are left out',
                logger='current',
            )
        return instances
