"""The parts common to COCO's panoptic and instance files: reading, images, classes."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.logging import print_log

from mmseg_m2f.adapters.things import checked_thing_ids
from mmseg_m2f.evaluation.coco_json import Json, parse_coco
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.metadata.colors import spread_colors

# Bytes. Reading a larger file takes seconds, and without a message the program seems to hang.
BIG_FILE = 50 * 2**20


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


def initial_metainfo(metadata: str | None, metainfo: Mapping[str, Any] | None) -> dict[str, Any]:
    """Collect the ``metainfo`` that is known before any file is read.

    Raises:
        ValueError: ``metadata`` and ``metainfo`` both name the classes.
    """
    given = dict(metainfo or {})
    if 'palette' in given:
        given['palette'] = list(given['palette'])
    if metadata is None:
        return given
    if 'classes' in given:
        raise ValueError(f'metadata={metadata!r} and metainfo both name the classes: give one')
    known = load_metadata(metadata)
    return {
        'classes': known.classes,
        'palette': list(known.palette),
        'thing_ids': known.thing_ids,
        'category_ids': known.category_ids,
        **given,
    }


def check_prefixes(data_prefix: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Check the keys of ``data_prefix``.

    Raises:
        ValueError: a key is not in ``allowed``, or the key ``img`` is missing.
    """
    unknown = sorted(set(data_prefix) - set(allowed))
    if unknown or 'img' not in data_prefix:
        raise ValueError(
            f'data_prefix={dict(data_prefix)!r}: it needs the key img, and knows {list(allowed)}'
        )


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
    own = ClassTable(
        classes=tuple(category['name'] for category in categories),
        palette=_palette(path, categories),
        thing_ids=tuple(i for i, entry in enumerate(categories) if entry.get('isthing', 1)),
        category_ids=tuple(category['id'] for category in categories),
    )
    if 'classes' not in metainfo:
        table = own
    elif 'category_ids' in metainfo:
        table = _table_by_id(path, own, metainfo)
    else:
        table = _table_by_name(path, own, metainfo)
    if metainfo.get('thing_ids') is None:
        return table
    thing_ids = checked_thing_ids(metainfo['thing_ids'], len(table.classes))
    return table._replace(thing_ids=tuple(thing_ids))


def announce(table: ClassTable) -> None:
    """Print the classes, once per table."""
    lines = [f'{len(table.classes)} classes, as "index name (category id)":']
    for kind, wanted in (('things', True), ('stuff', False)):
        rows = [
            f'{label} {name} ({category_id})'
            for label, (name, category_id) in enumerate(
                zip(table.classes, table.category_ids, strict=True)
            )
            if (label in table.thing_ids) == wanted
        ]
        lines.append(f'  {len(rows)} {kind}: {", ".join(rows) or "none"}')
    log_once('\n'.join(lines))


def label_of_category(
    path: str, label_of: Mapping[int, int], known: set[int], entry: Json, image: Json
) -> int | None:
    """Return the class index of a segment or instance; None if its category was not chosen.

    Args:
        path: the file, for messages.
        label_of: category id to class index.
        known: all category ids of the file.
        entry: the segment or instance.
        image: the image it belongs to.

    Raises:
        ValueError: the file does not list the category.
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


def _table_by_id(path: str, own: ClassTable, metainfo: Mapping[str, Any]) -> ClassTable:
    classes, category_ids = tuple(metainfo['classes']), tuple(metainfo['category_ids'])
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
    things = {own.category_ids[i] for i in own.thing_ids}
    return ClassTable(
        classes=classes,
        palette=tuple(map(tuple, metainfo.get('palette') or spread_colors(len(classes)))),
        thing_ids=tuple(label for label, i in enumerate(category_ids) if i in things),
        category_ids=category_ids,
    )


def _table_by_name(path: str, own: ClassTable, metainfo: Mapping[str, Any]) -> ClassTable:
    names = tuple(metainfo['classes'])
    missing = [name for name in names if name not in own.classes]
    if missing:
        raise ValueError(f'{path} has no categories {missing}; it has {list(own.classes)}')
    index = [own.classes.index(name) for name in names]
    left_out = [name for name in own.classes if name not in names]
    if left_out:
        log_once(f'{path}: these categories are no classes of the model and left out: {left_out}')
    return ClassTable(
        classes=names,
        palette=tuple(map(tuple, metainfo.get('palette') or [own.palette[i] for i in index])),
        thing_ids=tuple(label for label, i in enumerate(index) if i in own.thing_ids),
        category_ids=tuple(own.category_ids[i] for i in index),
    )
