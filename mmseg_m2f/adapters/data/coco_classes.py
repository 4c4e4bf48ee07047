"""What COCO's panoptic and instance files have in common: images, categories, class tables."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.logging import print_log

from mmseg_m2f.adapters.things import checked_thing_ids
from mmseg_m2f.evaluation.coco_json import Json, parse_coco
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.metadata.colors import spread_colors

# Reading takes some seconds from here on, and silence looks like a standstill.
BIG_FILE = 50 * 2**20


class ClassTable(NamedTuple):
    """Per class its name, color and category id; the classes that are things."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    thing_ids: tuple[int, ...]
    category_ids: tuple[int, ...]

    @property
    def label_of(self) -> dict[int, int]:
        """Category id to class index."""
        return {category_id: label for label, category_id in enumerate(self.category_ids)}

    def metainfo(self) -> dict[str, Any]:
        """As a data set tells it; mmdet's visualiser takes a tuple of colors for one color."""
        return {**self._asdict(), 'palette': list(self.palette)}


def initial_metainfo(metadata: str | None, metainfo: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is known before any file is read.

    Raises:
        ValueError: both name the classes.
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
    """ValueError for a key that is not used, or without the folder of the images."""
    unknown = sorted(set(data_prefix) - set(allowed))
    if unknown or 'img' not in data_prefix:
        raise ValueError(
            f'data_prefix={dict(data_prefix)!r}: it needs the key img, and knows {list(allowed)}'
        )


def read_json(path: str) -> Json:
    """The content of an annotation file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no JSON file, or its images or categories are not well-formed.
    """
    try:
        if os.path.getsize(path) > BIG_FILE:
            size = os.path.getsize(path) / 2**20
            print_log(f'reading {path} ({size:.0f} MB) ...', logger='current')
        with open(path, 'rb') as file:
            content = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'no annotation file {path}; check data_root and ann_file'
        ) from error
    return parse_coco(content, path, ('file_name', 'id', 'height', 'width'))


def class_table(path: str, categories: Sequence[Json], metainfo: Mapping[str, Any]) -> ClassTable:
    """The classes of a file: those of ``metainfo``, if it names some, else the file's own.

    With ``category_ids`` the file must have exactly these; with ``classes`` alone they are chosen
    by name. Otherwise each category is a class, in the order of the file, whatever its id. The
    file says which are things, unless ``thing_ids`` does.

    Raises:
        ValueError: the file's categories are not those asked for, or not well-formed.
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
        table = _known(path, own, metainfo)
    else:
        table = _chosen(path, own, metainfo)
    if metainfo.get('thing_ids') is None:
        return table
    return table._replace(
        thing_ids=tuple(checked_thing_ids(metainfo['thing_ids'], len(table.classes)))
    )


def announce(table: ClassTable) -> None:
    """Prints the classes, once for each table."""
    things = set(table.thing_ids)
    lines = [f'{len(table.classes)} classes, as "index name (category id)":']
    for kind, wanted in (('things', True), ('stuff', False)):
        rows = [
            f'{label} {name} ({category_id})'
            for label, (name, category_id) in enumerate(
                zip(table.classes, table.category_ids, strict=True)
            )
            if (label in things) == wanted
        ]
        lines.append(f'  {len(rows)} {kind}: {", ".join(rows) or "none"}')
    log_once('\n'.join(lines))


def label_of_category(
    path: str, label_of: Mapping[int, int], known: set[int], entry: Json, image: Json
) -> int | None:
    """The class of a segment or instance of ``image``, None if its category was not chosen.

    Raises:
        ValueError: the file does not list the category.
    """
    category_id = entry['category_id']
    # A list, say, cannot even be looked up.
    if not isinstance(category_id, int) or category_id not in known:
        raise ValueError(
            f'{path}: an annotation of {image["file_name"]} has category_id {category_id!r}, which '
            f'the categories do not list: {sorted(known)}'
        )
    return label_of.get(category_id)


@functools.cache
def log_once(text: str) -> None:
    """Tells the log what it has not been told yet."""
    print_log(text, logger='current')


def _palette(path: str, categories: Sequence[Json]) -> tuple[tuple[int, int, int], ...]:
    spread = spread_colors(len(categories))
    colors = []
    for category, default in zip(categories, spread, strict=True):
        color = category.get('color', default)
        numbers = color if isinstance(color, list | tuple) else ()
        if len(numbers) != 3 or not all(number in range(256) for number in numbers):
            raise ValueError(
                f'{path}: the color of the category {category["name"]!r} is {color!r}; it must be '
                'a list [red, green, blue] of 0 to 255, or left out'
            )
        colors.append(tuple(numbers))
    return tuple(colors)


def _known(path: str, own: ClassTable, metainfo: Mapping[str, Any]) -> ClassTable:
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
            f'the categories of {path} are not those of the metadata: it lacks the ids {missing} '
            f'and has besides {surplus}. Without metadata= the classes are read from the file.'
        )
    things = {own.category_ids[i] for i in own.thing_ids}
    return ClassTable(
        classes=classes,
        palette=tuple(map(tuple, metainfo.get('palette') or spread_colors(len(classes)))),
        thing_ids=tuple(label for label, i in enumerate(category_ids) if i in things),
        category_ids=category_ids,
    )


def _chosen(path: str, own: ClassTable, metainfo: Mapping[str, Any]) -> ClassTable:
    names = tuple(metainfo['classes'])
    missing = [name for name in names if name not in own.classes]
    if missing:
        raise ValueError(f'{path} has no categories {missing}; it has {list(own.classes)}')
    index = [own.classes.index(name) for name in names]
    left_out = [name for name in own.classes if name not in names]
    if left_out:
        log_once(f'{path}: no classes of the model, left out: {left_out}')
    things = set(own.thing_ids)
    return ClassTable(
        classes=names,
        palette=tuple(map(tuple, metainfo.get('palette') or [own.palette[i] for i in index])),
        thing_ids=tuple(label for label, i in enumerate(index) if i in things),
        category_ids=tuple(own.category_ids[i] for i in index),
    )
