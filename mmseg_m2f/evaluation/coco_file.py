"""A JSON file of COCO instances as ground truth."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmseg_m2f.evaluation.rle import import_coco_mask


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """What evaluation needs of the file, by picture.

    Args:
        path: for messages.
        sizes: per picture ``(height, width)``.
        instances: per picture what COCO calls annotations.
        categories: ids and names, in the order of the file.
    """

    path: str
    sizes: dict[int | str, tuple[int, int]]
    instances: dict[int | str, list[dict[str, Any]]]
    categories: dict[int, str]

    @classmethod
    def parse(cls, content: str | bytes, path: str) -> 'CocoFile':
        """Reads the text of a file.

        Raises:
            ValueError: it has no pictures, categories or annotations.
        """
        file = json.loads(content)
        missing = [key for key in ('images', 'categories', 'annotations') if key not in file]
        if missing:
            raise ValueError(f'{path} is no ground truth in COCO format: it lacks {missing}')
        instances = defaultdict(list)
        for instance in file['annotations']:
            instances[instance['image_id']].append(instance)
        return cls(
            path=path,
            sizes={image['id']: (image['height'], image['width']) for image in file['images']},
            instances=dict(instances),
            categories={category['id']: category['name'] for category in file['categories']},
        )

    def true_instances(
        self, image_id: int | str, size: tuple[int, int], category_ids: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The instances of a picture whose category counts, with COCO's defaults filled in.

        Raises:
            ValueError: the file does not know the picture, or states another size.
        """
        if image_id not in self.sizes:
            raise ValueError(
                f'{self.path} has no picture with the id {image_id!r}: ann_file of the metric must '
                'belong to the data set of the test'
            )
        if self.sizes[image_id] != size:
            raise ValueError(
                f'the predictions for picture {image_id!r} are {size} pixels (height, width), '
                f'{self.path} says {self.sizes[image_id]}'
            )
        counted = set(category_ids)
        return [
            {
                'category_id': instance['category_id'],
                'segmentation': instance['segmentation'],
                'area': instance['area'] if 'area' in instance else _area(instance, size),
                'iscrowd': int(instance.get('iscrowd', 0)),
            }
            for instance in self.instances.get(image_id, [])
            if instance['category_id'] in counted and instance.get('segmentation')
        ]


def _area(instance: dict[str, Any], size: tuple[int, int]) -> float:
    coco_mask = import_coco_mask()
    shape = instance['segmentation']
    if isinstance(shape, list):  # polygons
        rle = coco_mask.merge(coco_mask.frPyObjects(shape, *size))
    elif isinstance(shape['counts'], list):
        rle = coco_mask.frPyObjects(shape, *size)
    else:
        rle = shape
    return float(coco_mask.area(rle))
