"""The classes of a data set in one of COCO's formats."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log

from mmseg_m2f.adapters.things import checked_thing_ids
from mmseg_m2f.evaluation.coco_json import Json
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.metadata.colors import spread_colors


def initial_metainfo(metadata: str | None, metainfo: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the ``metainfo`` that is known before the file is read."""
    given = dict(metainfo or {})
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


def class_metainfo(
    path: str, categories: Sequence[Json], metainfo: Mapping[str, Any], only_things: bool
) -> dict[str, Any]:
    """Return ``classes``, ``palette``, ``thing_ids`` and ``category_ids`` of a data set.

    * ``metainfo`` with ``category_ids`` (it comes from ``metadata=``): these classes. The file must
      have exactly these categories.
    * ``metainfo`` with ``classes`` only: these classes, found in the file by name.
    * else: each category of the file, in the order of the file, whatever its id.

    The file says which classes are things, unless ``metainfo`` has ``thing_ids``.

    Raises:
        ValueError: the categories of the file do not fit, or are not well-formed.
    """
    colors = _colors(path, categories)
    chosen = _chosen(path, categories, metainfo)
    thing_ids = metainfo.get('thing_ids')
    if thing_ids is None:
        thing_ids = [label for label, entry in enumerate(chosen) if entry.get('isthing')]
    palette = metainfo.get('palette') or [colors[category['id']] for category in chosen]
    return {
        'classes': tuple(metainfo.get('classes') or [category['name'] for category in chosen]),
        # mmdet's visualizer takes a tuple of colors for one color.
        'palette': [tuple(color) for color in palette],
        'thing_ids': tuple(checked_thing_ids(None if only_things else thing_ids, len(chosen))),
        'category_ids': tuple(category['id'] for category in chosen),
    }


def log_classes(metainfo: Mapping[str, Any]) -> None:
    """Write the classes to the log, once."""
    columns = zip(metainfo['classes'], metainfo['category_ids'], strict=True)
    rows = [f'{label} {name} ({number})' for label, (name, number) in enumerate(columns)]
    things = [row for label, row in enumerate(rows) if label in metainfo['thing_ids']]
    stuff = [row for row in rows if row not in things]
    log_once(
        f'{len(rows)} classes, as "index name (category id)":\n'
        f'  {len(things)} things: {", ".join(things) or "none"}\n'
        f'  {len(stuff)} stuff: {", ".join(stuff) or "none"}'
    )


@functools.cache
def log_once(text: str) -> None:
    """Write a message to the log, unless it was written before."""
    print_log(text, logger='current')


def _colors(path: str, categories: Sequence[Json]) -> dict[int, Sequence[int]]:
    """Map category ids to colors: those of the file, else different ones."""
    colors = {}
    for category, default in zip(categories, spread_colors(len(categories)), strict=True):
        color = category.get('color', default)
        numbers = color if isinstance(color, list | tuple) else ()
        if len(numbers) != 3 or not all(number in range(256) for number in numbers):
            raise ValueError(
                f'{path}: the color of the category {category["name"]!r} is {color!r}; it must be '
                'a list [red, green, blue] of 0 to 255, or left out'
            )
        colors[category['id']] = color
    return colors


def _chosen(path: str, categories: Sequence[Json], metainfo: Mapping[str, Any]) -> Sequence[Json]:
    """Return the category of each class."""
    classes, category_ids = metainfo.get('classes'), metainfo.get('category_ids')
    if not classes:
        return categories
    key, wanted = ('name', classes) if category_ids is None else ('id', category_ids)
    if len(classes) != len(wanted):
        raise ValueError(
            f'metainfo has {len(classes)} classes and {len(wanted)} category_ids: one of each is '
            'needed for a class'
        )
    own = {category[key]: category for category in categories}
    missing = [value for value in wanted if value not in own]
    others = [value for value in own if value not in wanted]
    if missing or (others and key == 'id'):
        raise ValueError(
            f'{path} does not have the categories of metadata or metainfo: it lacks the {key}s '
            f'{missing} and has {others} besides. Without the two its own classes are taken.'
        )
    if others:
        log_once(f'{path}: these categories are no classes of the model and left out: {others}')
    return [own[value] for value in wanted]
