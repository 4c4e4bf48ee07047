"""Read JSON in COCO's formats. Each error message names the file and the wrong entry."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mmseg_m2f.evaluation.rle import import_coco_mask

Json = dict[str, Any]


class CocoFile:
    """Read the ground truth from a file in COCO's instance format.

    Its attributes are ``sizes``, ``(height, width)`` by image id; ``categories``, the names by
    category id in the order of the file; and ``instances``, a list by image id. An annotation
    without an area (no mask, or polygons of fewer than three points) is no instance.

    Args:
        content: the text of the file.
        path: the file, for messages.

    Raises:
        ValueError: images, categories or annotations are missing or not well-formed.
    """

    def __init__(self, content: str | bytes, path: str) -> None:
        file = parse_coco(content, path, ('id', 'height', 'width'))
        annotations = entries_of(path, file, 'annotations')
        check_keys(path, 'annotation', annotations, ('category_id', 'image_id'))
        self.path = path
        self.categories = {category['id']: category['name'] for category in file['categories']}
        self.sizes = {image['id']: (image['height'], image['width']) for image in file['images']}
        self.instances: dict[int | str, list[Json]] = {image_id: [] for image_id in self.sizes}
        for annotation in annotations:
            shape = valid_shape(path, annotation)
            if shape is not None and annotation['image_id'] in self.sizes:
                self._add(annotation, shape)

    def _add(self, annotation: Json, shape: list[list[float]] | Json) -> None:
        """Keep an annotation as an instance, with COCO's defaults filled in."""
        image_id, area = annotation['image_id'], annotation.get('area')
        size = self.sizes[image_id]
        if isinstance(shape, dict) and tuple(shape['size']) != size:
            raise ValueError(
                f'{self.path}: a mask of image {image_id!r} is of size {tuple(shape["size"])} '
                f'(height, width), the image of {size}'
            )
        self.instances[image_id].append(
            {
                'category_id': annotation['category_id'],
                'segmentation': shape,
                'area': _area(shape, size) if area is None else area,
                'iscrowd': int(annotation.get('iscrowd') or 0),
            }
        )

    def true_instances(
        self, image_id: int | str, size: tuple[int, int], category_ids: Sequence[int]
    ) -> list[Json]:
        """Return the instances of an image in these categories.

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
        return [i for i in self.instances[image_id] if i['category_id'] in counted]


def _area(shape: list[list[float]] | Json, size: tuple[int, int]) -> float:
    coco_mask = import_coco_mask()
    if isinstance(shape, list):  # polygons
        shape = coco_mask.merge(coco_mask.frPyObjects(shape, *size))
    elif isinstance(shape['counts'], list):
        shape = coco_mask.frPyObjects(shape, *size)
    return float(coco_mask.area(shape))


def parse_coco(content: str | bytes, path: str, image_keys: Sequence[str]) -> Json:
    """Parse an annotation file, and check its ``images`` and ``categories``.

    Each image must have the ``image_keys``.

    Raises:
        ValueError: the text is no JSON, lacks one of the lists, or has a wrong entry.
    """
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise ValueError(f'{path} is no JSON file: {error}') from error
    images, categories = (entries_of(path, parsed, key) for key in ('images', 'categories'))
    check_keys(path, 'image', images, image_keys)
    check_keys(path, 'category', categories, ('id', 'name'))
    for image in images:
        if not isinstance(image.get('file_name', ''), str) or type(image['id']) not in (int, str):
            raise ValueError(
                f'{path}: the image {image!r:.200} needs an id (a number or a text), and file_name '
                'must be a text'
            )
    for category in categories:
        if type(category['id']) is not int:
            raise ValueError(
                f'{path}: the id of the category {category["name"]!r} is {category["id"]!r}; '
                'category ids must be whole numbers'
            )
    check_unique(path, 'image', (image['id'] for image in images))
    check_unique(path, 'category', (category['id'] for category in categories))
    return parsed


def entries_of(path: str, content: Any, key: str) -> list[Json]:
    """Return the list ``content[key]``; raise ``ValueError`` if there is none."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not in a format of COCO: it has no list of ['{key}']")
    return entries


def check_keys(path: str, kind: str, entries: Iterable[Json], keys: Sequence[str]) -> None:
    """Raise ``ValueError`` unless each entry is an object with all of these keys."""
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f'{path}: the {kind} {entry!r:.200} is no object of keys and values')
        missing = [key for key in keys if key not in entry]
        if missing:
            raise ValueError(f'{path}: the {kind} {entry!r:.200} lacks {missing}')


def check_unique(path: str, kind: str, ids: Iterable[Any]) -> None:
    """Raise ``ValueError`` if an id comes twice."""
    repeated = [entry_id for entry_id, number in Counter(ids).items() if number > 1]
    if repeated:
        raise ValueError(f'{path} lists the {kind} {repeated[0]!r} twice')


def valid_shape(path: str, annotation: Json) -> list[list[float]] | Json | None:
    """Return the run-length encoding, or the polygons that enclose an area; None if there is none.

    Raises:
        ValueError: the annotation's ``segmentation`` is neither of COCO's two kinds.
    """
    shape = annotation.get('segmentation') or []
    if isinstance(shape, dict):
        return shape if {'size', 'counts'} <= set(shape) else None
    if not isinstance(shape, list) or not all(isinstance(polygon, list) for polygon in shape):
        raise ValueError(
            f'{path}: the segmentation {shape!r:.80} of annotation {annotation.get("id")!r} (image '
            f'{annotation["image_id"]!r}) must be a list of polygons [[x, y, x, y, ...], ...] or a '
            'run-length encoding'
        )
    return [p for p in shape if len(p) >= 6 and len(p) % 2 == 0] or None
