"""Ground truth from a JSON file in COCO's instance format."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmseg_m2f.evaluation.coco_json import check_keys, entries_of, parse_coco, valid_shape
from mmseg_m2f.evaluation.rle import import_coco_mask


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """The content of the file that evaluation needs.

    Args:
        path: the file, for messages.
        sizes: image id to ``(height, width)``.
        instances: image id to its instances, in COCO's terms.
        categories: category id to name, in the order of the file.
    """

    path: str
    sizes: dict[int | str, tuple[int, int]]
    instances: dict[int | str, list[dict[str, Any]]]
    categories: dict[int, str]

    @classmethod
    def parse(cls, content: str | bytes, path: str) -> 'CocoFile':
        """Parse the text of a file.

        Raises:
            ValueError: images, categories or annotations are missing or not well-formed.
        """
        file = parse_coco(content, path, ('id', 'height', 'width'))
        annotations = entries_of(path, file, 'annotations')
        check_keys(path, 'annotation', annotations, ('category_id', 'image_id'))
        sizes = {image['id']: (image['height'], image['width']) for image in file['images']}
        instances = defaultdict(list)
        for instance in annotations:
            shape = valid_shape(path, instance)
            if shape is None:
                continue
            size = sizes.get(instance['image_id'])
            if isinstance(shape, dict) and tuple(shape['size']) != size:
                raise ValueError(
                    f'{path}: a mask of image {instance["image_id"]!r} is of size '
                    f'{tuple(shape["size"])} (height, width), the image of {size}'
                )
            instances[instance['image_id']].append({**instance, 'segmentation': shape})
        return cls(
            path=path,
            sizes=sizes,
            instances=dict(instances),
            categories={category['id']: category['name'] for category in file['categories']},
        )

    def true_instances(
        self, image_id: int | str, size: tuple[int, int], category_ids: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Return the instances of an image in these categories, with COCO's defaults filled in.

        An annotation without an area (no mask, or polygons of fewer than three points) is no
        instance.

        Raises:
            ValueError: the file does not list the image, or states another size.
        """
        if image_id not in self.sizes:
            raise ValueError(
                f'{self.path} has no image with the id {image_id!r}: ann_file of the metric must '
                'belong to the data set of the test'
            )
        if self.sizes[image_id] != size:
            raise ValueError(
                f'the predictions for image {image_id!r} are {size} pixels (height, width), '
                f'{self.path} says {self.sizes[image_id]}'
            )
        counted = set(category_ids)
        return [
            {
                'category_id': instance['category_id'],
                'segmentation': instance['segmentation'],
                'area': _area(instance, size) if instance.get('area') is None else instance['area'],
                'iscrowd': int(instance.get('iscrowd') or 0),
            }
            for instance in self.instances.get(image_id, [])
            if instance['category_id'] in counted
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
