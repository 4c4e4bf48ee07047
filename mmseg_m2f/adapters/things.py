"""The classes that are things, for a head and for a data set."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import Tensor


def checked_thing_ids(thing_ids: Sequence[Any] | None, num_classes: int) -> list[int]:
    """Return the ids in rising order, or all classes for None.

    Raises:
        ValueError: they are not different class indices.
    """
    ids = list(range(num_classes) if thing_ids is None else thing_ids)
    # A bool is an integer in Python, but no class index.
    are_integers = all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids)
    if not are_integers or not set(ids) <= set(range(num_classes)) or len(set(ids)) < len(ids):
        raise ValueError(
            f'thing_ids must be different class indices from 0 to {num_classes - 1} (None: all '
            f'classes are things), got {ids}'
        )
    return sorted(map(int, ids))


def has_things_first(head: Any) -> bool:
    """Return True if all things of a head come before its stuff, or if it has one kind only."""
    is_thing: Tensor | None = getattr(head, 'is_thing', None)
    return is_thing is None or not bool((is_thing[1:] & ~is_thing[:-1]).any())


def thing_ids_of(meta: Mapping[str, Any]) -> list[int] | None:
    """Return the things of a data set by its ``metainfo``; None if it does not tell.

    mmdet's panoptic data sets have ``thing_classes`` and ``stuff_classes``, by name. These are
    COCO's, even if the data set has fewer classes or others.
    """
    if meta.get('thing_ids') is not None:
        return list(meta['thing_ids'])
    classes, things = meta.get('classes'), meta.get('thing_classes')
    if not classes or things is None:
        return None
    # If the stuff has no names, all classes but the things are stuff.
    stuff = meta.get('stuff_classes')
    tells = set(things) <= set(classes) if stuff is None else set(classes) <= {*things, *stuff}
    return [label for label, name in enumerate(classes) if name in things] if tells else None
