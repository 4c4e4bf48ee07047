"""Read JSON in COCO's formats, and say what is wrong with it. Each message names the file."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

Json = dict[str, Any]


def parse_coco(content: str | bytes, path: str, image_keys: Sequence[str]) -> Json:
    """Parse the text of an annotation file, and check its ``images`` and ``categories``.

    Each image must have the ``image_keys``.

    Raises:
        ValueError: the text is no JSON, lacks one of the two lists, or an entry is not
            well-formed.
    """
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise ValueError(f'{path} is no JSON file: {error}') from error
    images, categories = (entries_of(path, parsed, key) for key in ('images', 'categories'))
    check_keys(path, 'image', images, image_keys)
    check_keys(path, 'category', categories, ('id', 'name'))
    for image in images:
        if not isinstance(image.get('file_name', ''), str) or not _is_id(image['id'], (int, str)):
            raise ValueError(
                f'{path}: the image {image!r:.200} needs an id (a number or a text), and file_name '
                'must be a text'
            )
    for category in categories:
        if not _is_id(category['id'], (int,)):
            raise ValueError(
                f'{path}: the id of the category {category["name"]!r} is {category["id"]!r}; '
                'category ids must be whole numbers'
            )
    check_unique(path, 'image', (image['id'] for image in images))
    check_unique(path, 'category', (category['id'] for category in categories))
    return parsed


def _is_id(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


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
    seen: set[Any] = set()
    for entry_id in ids:
        if entry_id in seen:
            raise ValueError(f'{path} lists the {kind} {entry_id!r} twice')
        seen.add(entry_id)


def valid_shape(path: str, annotation: Json) -> list[list[float]] | Json | None:
    """Return the run-length encoding, or the polygons that enclose an area; None if there is none.

    Raises:
        ValueError: the annotation's ``segmentation`` is neither of COCO's two kinds.
    """
    shape = annotation.get('segmentation')
    if isinstance(shape, dict):
        return shape if {'size', 'counts'} <= set(shape) else None
    if not isinstance(shape or [], list) or any(not isinstance(p, list) for p in shape or []):
        raise ValueError(
            f'{path}: the segmentation {shape!r:.80} of annotation {annotation.get("id")!r} (image '
            f'{annotation["image_id"]!r}) must be a list of polygons [[x, y, x, y, ...], ...] or a '
            'run-length encoding'
        )
    polygons = [p for p in shape or [] if len(p) >= 6 and len(p) % 2 == 0]
    return polygons or None
