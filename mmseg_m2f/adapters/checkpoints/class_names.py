"""The names and colors of the classes that travel with weights, in one form."""

import logging
from collections.abc import Sequence
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


def class_names(meta: object, order: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the ``dataset_meta`` of a checkpoint in plain values, with lower-case keys.

    Classes without colors get some, because mmseg's drawing asks for them. What cannot be used is
    left out, and a warning names it.

    Args:
        meta: the ``meta`` of a checkpoint, with ``dataset_meta``, or with the ``CLASSES`` and
            ``PALETTE`` of the time before MMEngine. Anything else counts as nothing.
        order: new class ``i`` is the old class ``order[i]``; None keeps the order.
    """
    names: dict[str, Any] = {}
    left_out = []
    given = _given(meta)
    if not isinstance(given, dict | None):
        left_out, given = ['everything (a dict is wanted)'], None
    for key, value in (given or {}).items():
        name = str(key).lower()
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value
        if plain is None and name in _BY_CLASS:
            continue
        if not _is_usable(name, plain):
            left_out.append(name)
        elif order is None or name in _BY_NAME:
            names[name] = plain
        elif name in _BY_CLASS and len(plain) == len(order):
            names[name] = [plain[index] for index in order]
        else:
            left_out.append(f'{name} (belongs to the old order)')
    if 'classes' in names:
        names.setdefault('palette', voc_colors(len(names['classes'])))
    if left_out:
        print_log(
            f'left out of what the checkpoint says about its classes: {", ".join(left_out)}. '
            'Wanted are a list of names, a list of colors of three numbers each, and plain values',
            logger='current',
            level=logging.WARNING,
        )
    return names


def _given(meta: Any) -> Any:
    if not isinstance(meta, dict):
        return meta
    if meta.get('dataset_meta') is not None:
        return meta['dataset_meta']
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
