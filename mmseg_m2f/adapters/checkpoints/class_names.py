"""The names and colors of the classes that travel with weights, in one form."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f.adapters.checkpoints.write import check_plain
from mmseg_m2f.metadata.colors import voc_colors

# These have one entry per class, so a new order applies to them.
_BY_CLASS = ('classes', 'palette')
# These go by name and stay true in any order.
_BY_NAME = ('thing_classes', 'stuff_classes')
_WANTED = {'classes': 'a list of names', 'palette': 'a list of colors of three numbers'}


def class_names(meta: object, order: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the ``dataset_meta`` of a checkpoint in plain values, with lower-case keys.

    Classes without colors get some, because mmseg's drawing asks for them. What cannot be used is
    left out, and a warning names it.

    Args:
        meta: the ``meta`` of a checkpoint, with ``dataset_meta``, or with the ``CLASSES`` and
            ``PALETTE`` of the time before MMEngine. Anything else counts as nothing.
        order: new class ``i`` is the old class ``order[i]``; None keeps the order.
    """
    found: dict[str, Any] = {}
    left_out: list[str] = []
    for key, value in _given(meta, left_out).items():
        name = str(key).lower()
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value
        if plain is None and name in _BY_CLASS:
            continue
        if _is_usable(name, plain):
            found[name] = plain
        else:
            left_out.append(f'{name} ({_WANTED.get(name, "plain values")} wanted)')
    if order is not None:
        found = _in_order(found, order, left_out)
    if 'classes' in found:
        found.setdefault('palette', voc_colors(len(found['classes'])))
    _warn(left_out)
    return found


def _given(meta: object, left_out: list[str]) -> Mapping[Any, Any]:
    if not isinstance(meta, Mapping):
        if meta is not None:
            left_out.append('meta (a dict wanted)')
        return {}
    given = meta.get('dataset_meta')
    if isinstance(given, Mapping):
        return given
    if given is not None:
        left_out.append('dataset_meta (a dict wanted)')
    return {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}


def _is_usable(name: str, value: Any) -> bool:
    try:
        check_plain(value, name)
    except TypeError:
        return False
    if name == 'classes':
        return _is_list(value) and all(isinstance(item, str) for item in value)
    if name == 'palette':
        return _is_list(value) and all(_is_list(color) and len(color) == 3 for color in value)
    return True


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value)


def _in_order(
    found: Mapping[str, Any], order: Sequence[int], left_out: list[str]
) -> dict[str, Any]:
    kept = {name: found[name] for name in _BY_NAME if name in found}
    for name in found.keys() - kept.keys():
        if name in _BY_CLASS and len(found[name]) == len(order):
            kept[name] = [found[name][index] for index in order]
        else:
            left_out.append(f'{name} (belongs to the old order)')
    return kept


def _warn(left_out: Collection[str]) -> None:
    if left_out:
        print_log(
            'left out of what the checkpoint says about its classes: '
            f'{", ".join(sorted(left_out))}',
            logger='current',
            level=logging.WARNING,
        )
