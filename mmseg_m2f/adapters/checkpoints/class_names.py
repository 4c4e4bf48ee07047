"""The names and colors of the classes that travel with weights, in one form."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f.adapters.checkpoints.formats import colors
from mmseg_m2f.adapters.checkpoints.loader import check_plain

# Per class, so that they follow an order; of the others only those by name stay true in another.
_BY_CLASS = ('classes', 'palette')
_BY_NAME = ('thing_classes', 'stuff_classes')
_WANTED = {'classes': 'a list of names', 'palette': 'a list of colors of three numbers'}


def class_names(meta: object, order: Sequence[int] | None = None) -> dict[str, Any]:
    """``dataset_meta`` out of the ``meta`` of a checkpoint, in plain values, with lower-case keys.

    Classes without colors get some, because drawing asks for them. What cannot be used is left
    out and logged.

    Args:
        meta: with ``dataset_meta``, or the ``CLASSES`` and ``PALETTE`` of before MMEngine; anything
            else is as good as nothing.
        order: new class ``i`` is the old class ``order[i]``; None leaves them.
    """
    found: dict[str, Any] = {}
    left_out: list[str] = []
    for key, value in _given(meta, left_out).items():
        name = str(key).lower()
        plain = _plain(value)
        if plain is None and name in _BY_CLASS:
            continue
        if _is_usable(name, plain):
            found[name] = plain
        else:
            left_out.append(f'{name} ({_WANTED.get(name, "plain values")} wanted)')
    if order is not None:
        found = _in_order(found, order, left_out)
    if 'classes' in found:
        found.setdefault('palette', colors(len(found['classes'])))
    _log(left_out)
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


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value


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
            left_out.append(f'{name} (of the old order)')
    return kept


def _log(left_out: Collection[str]) -> None:
    if left_out:
        print_log(
            'of what the checkpoint tells of its classes was left out: '
            f'{", ".join(sorted(left_out))}',
            logger='current',
            level=logging.WARNING,
        )
