"""Classes, colors, things and category ids of the published data sets.

The panoptic classes of each data set are in a JSON file beside this one. The classes of an instance
data set are the things among them. Nothing here imports a framework or torch.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ['NAMES', 'DatasetMetadata', 'load_metadata']

_FILES = {
    'ade20k': 'ade20k',
    'ade20k_instance': 'ade20k',
    'cityscapes': 'cityscapes',
    'cityscapes_instance': 'cityscapes',
    'coco_instance': 'coco_panoptic',
    'coco_panoptic': 'coco_panoptic',
    'mapillary': 'mapillary',
}
NAMES = tuple(_FILES)


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
    """The classes of a data set, in the order of the official models' class rows.

    ``palette`` are colors ``(red, green, blue)``, ``thing_ids`` the indices of the classes that are
    things, ``category_ids`` those of the classes in the JSON files. ``ignore_index`` is the label
    of pixels without a class in label maps.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    thing_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    ignore_index: int


@functools.cache
def load_metadata(name: str) -> DatasetMetadata:
    """Return the metadata of this name; ``ValueError`` if it is not in ``NAMES``."""
    if name not in _FILES:
        raise ValueError(f'metadata={name!r} is not known; known are {", ".join(NAMES)}')
    path = Path(__file__).with_name(f'{_FILES[name]}.json')
    content = json.loads(path.read_text(encoding='utf-8'))
    categories = content['categories']
    if name.endswith('_instance'):
        categories = [category for category in categories if category['isthing']]
    return DatasetMetadata(
        name=name,
        classes=tuple(category['name'] for category in categories),
        palette=tuple(tuple(category['color']) for category in categories),
        thing_ids=tuple(i for i, category in enumerate(categories) if category['isthing']),
        category_ids=tuple(category['id'] for category in categories),
        ignore_index=content['ignore_index'],
    )
