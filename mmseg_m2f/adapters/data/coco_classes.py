"""The parts common to the data sets in COCO's formats: file, classes, records of images."""

import functools
import os
import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from mmseg_m2f.adapters.things import checked_thing_ids
from mmseg_m2f.evaluation.coco_json import Json, parse_coco
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.metadata.colors import spread_colors

# Bytes. Reading a larger file takes seconds, and without a message the program seems to hang.
BIG_FILE = 50 * 2**20


class CocoFormatDataset(BaseDataset):
    """The part common to `PanopticDataset` and `InstanceDataset`; see there for the arguments."""

    prefixes: ClassVar[tuple[str, ...]] = ('img',)
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
        unknown = sorted(set(data_prefix) - set(self.prefixes))
        if unknown or 'img' not in data_prefix:
            raise ValueError(
                f'data_prefix={dict(data_prefix)!r}: it needs the key img, and knows '
                f'{list(self.prefixes)}'
            )
        super().__init__(
            ann_file=ann_file,
            data_prefix=dict(data_prefix),
            metainfo=_initial_metainfo(metadata, metainfo),
            **settings,
        )
        self._metainfo['metadata'] = metadata

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the classes in an image, for MMEngine's ``ClassBalancedDataset``."""
        return [entry['label'] for entry in self.get_data_info(idx)[self.listed]]

    def set_classes(self, table: 'ClassTable') -> None:
        """Write the classes into ``metainfo`` and into the log."""
        self._metainfo.update(table.metainfo())
        log_once(table.describe())

    def image_record(self, image: Json, file_name: str) -> dict[str, Any]:
        """Return what is known of an image without its annotation."""
        return {
            'img_path': osp.join(self.data_prefix['img'], file_name),
            'img_id': image['id'],
            'height': image['height'],
            'width': image['width'],
        }


class ClassTable(NamedTuple):
    """The classes of a data set.

    Args:
        classes: the names.
        palette: a color (red, green, blue) per class, 0 to 255.
        thing_ids: the indices of the classes that are things.
        category_ids: per class the category id in the file.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    thing_ids: tuple[int, ...]
    category_ids: tuple[int, ...]

    @property
    def label_of(self) -> dict[int, int]:
        """Map each category id to its class index."""
        return {category_id: label for label, category_id in enumerate(self.category_ids)}

    def metainfo(self) -> dict[str, Any]:
        """Return the table as the ``metainfo`` of a data set."""
        # mmdet's visualizer takes a tuple of colors for one color.
        return {**self._asdict(), 'palette': list(self.palette)}

    def describe(self) -> str:
        """List the classes for the log."""
        lines = [f'{len(self.classes)} classes, as "index name (category id)":']
        for kind, wanted in (('things', True), ('stuff', False)):
            rows = [
                f'{label} {name} ({self.category_ids[label]})'
                for label, name in enumerate(self.classes)
                if (label in self.thing_ids) == wanted
            ]
            lines.append(f'  {len(rows)} {kind}: {", ".join(rows) or "none"}')
        return '\n'.join(lines)


def read_json(path: str) -> Json:
    """Read an annotation file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no JSON file, or its images or categories are not well-formed.
    """
    try:
        size = os.path.getsize(path)
        if size > BIG_FILE:
            print_log(f'reading {path} ({size / 2**20:.0f} MB) ...', logger='current')
        with open(path, 'rb') as file:
            content = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'no annotation file {path}; check data_root and ann_file'
        ) from error
    return parse_coco(content, path, ('file_name', 'id', 'height', 'width'))


def class_table(path: str, categories: Sequence[Json], metainfo: Mapping[str, Any]) -> ClassTable:
    """Decide which classes a data set has.

    * ``metainfo`` with ``category_ids`` (it comes from ``metadata=``): these classes. The file must
      have exactly these categories.
    * ``metainfo`` with ``classes`` only: these classes, found in the file by name.
    * else: each category of the file, in the order of the file, whatever its id.

    The file says which classes are things, unless ``metainfo`` has ``thing_ids``.

    Raises:
        ValueError: the categories of the file do not fit, or are not well-formed.
    """
    table = ClassTable(
        classes=tuple(category['name'] for category in categories),
        palette=_palette(path, categories),
        thing_ids=tuple(i for i, entry in enumerate(categories) if entry.get('isthing', 1)),
        category_ids=tuple(category['id'] for category in categories),
    )
    if 'classes' in metainfo:
        table = _chosen(path, table, metainfo)
    if metainfo.get('thing_ids') is None:
        return table
    thing_ids = checked_thing_ids(metainfo['thing_ids'], len(table.classes))
    return table._replace(thing_ids=tuple(thing_ids))


def label_of_category(
    path: str, label_of: Mapping[int, int], known: set[int], entry: Json, image: Json
) -> int | None:
    """Return the class index of a segment or instance; None if its category was not chosen.

    ``label_of`` maps category ids to class indices, ``known`` holds all category ids of the file.

    Raises:
        ValueError: the file does not list the category of ``entry``.
    """
    category_id = entry['category_id']
    # The type comes first: a list could not be looked up in a set.
    if not isinstance(category_id, int) or category_id not in known:
        raise ValueError(
            f'{path}: an annotation of {image["file_name"]} has category_id {category_id!r}, which '
            f'the categories do not list: {sorted(known)}'
        )
    return label_of.get(category_id)


@functools.cache
def log_once(text: str) -> None:
    """Write a message to the log, unless it was written before."""
    print_log(text, logger='current')


def _initial_metainfo(metadata: str | None, metainfo: Mapping[str, Any] | None) -> dict[str, Any]:
    """Collect the ``metainfo`` that is known before any file is read."""
    collected = dict(metainfo or {})
    if metadata is not None:
        if 'classes' in collected:
            raise ValueError(f'metadata={metadata!r} and metainfo both name the classes: give one')
        known = load_metadata(metadata)
        table = ClassTable(known.classes, known.palette, known.thing_ids, known.category_ids)
        collected = {**table.metainfo(), **collected}
    if 'palette' in collected:
        collected['palette'] = list(collected['palette'])
    return collected


def _palette(path: str, categories: Sequence[Json]) -> tuple[tuple[int, int, int], ...]:
    colors = []
    for category, default in zip(categories, spread_colors(len(categories)), strict=True):
        color = category.get('color', default)
        numbers = color if isinstance(color, list | tuple) else ()
        if len(numbers) != 3 or not all(number in range(256) for number in numbers):
            raise ValueError(
                f'{path}: the color of the category {category["name"]!r} is {color!r}; it must be '
                'a list [red, green, blue] of 0 to 255, or left out'
            )
        colors.append(tuple(numbers))
    return tuple(colors)


def _chosen(path: str, own: ClassTable, metainfo: Mapping[str, Any]) -> ClassTable:
    """Return the classes of ``metainfo``, with the things and ids that the file gives them."""
    find = _indices_by_id if 'category_ids' in metainfo else _indices_by_name
    index = find(path, own, metainfo)
    palette = metainfo.get('palette') or [own.palette[i] for i in index]
    return ClassTable(
        classes=tuple(metainfo['classes']),
        palette=tuple(map(tuple, palette)),
        thing_ids=tuple(label for label, i in enumerate(index) if i in own.thing_ids),
        category_ids=tuple(own.category_ids[i] for i in index),
    )


def _indices_by_id(path: str, own: ClassTable, metainfo: Mapping[str, Any]) -> list[int]:
    classes, category_ids = metainfo['classes'], metainfo['category_ids']
    if len(classes) != len(category_ids):
        raise ValueError(
            f'metainfo has {len(classes)} classes and {len(category_ids)} category_ids: one of '
            'each is needed'
        )
    missing = sorted(set(category_ids) - set(own.category_ids))
    surplus = sorted(set(own.category_ids) - set(category_ids))
    if missing or surplus:
        raise ValueError(
            f'the categories of {path} are not those of the metadata: the file lacks the ids '
            f'{missing} and also has {surplus}. Without metadata= the classes are read from the '
            'file.'
        )
    return [own.category_ids.index(i) for i in category_ids]


def _indices_by_name(path: str, own: ClassTable, metainfo: Mapping[str, Any]) -> list[int]:
    names = metainfo['classes']
    missing = [name for name in names if name not in own.classes]
    if missing:
        raise ValueError(f'{path} has no categories {missing}; it has {list(own.classes)}')
    left_out = [name for name in own.classes if name not in names]
    if left_out:
        log_once(f'{path}: these categories are no classes of the model and left out: {left_out}')
    return [own.classes.index(name) for name in names]
