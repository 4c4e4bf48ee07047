"""Change the order or number of classes, or the number of queries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmseg_m2f.checkpoints.keymap import StateDict
from mmseg_m2f.checkpoints.layouts import head_prefix


def things_first(thing_ids: Sequence[int], num_classes: int) -> list[int]:
    """Return the class order of mmdet's panoptic data sets: all things, then all stuff.

    Raises:
        ValueError: ``thing_ids`` are not different class indices.
    """
    things = sorted(thing_ids)
    stuff = [index for index in range(num_classes) if index not in set(things)]
    if len(things) + len(stuff) != num_classes or len(set(things)) != len(things):
        raise ValueError(f'thing_ids are not different classes of {num_classes}: {things}')
    return [*things, *stuff]


def reorder_classes(state_dict: StateDict, order: Sequence[int]) -> dict[str, Tensor]:
    """Reorder the class layer: its row ``i`` is the old row ``order[i]``; no-object stays last.

    Raises:
        ValueError: ``order`` does not name every class once.
    """
    changed = dict(state_dict)
    for key, rows in _tables(state_dict, 'class_embed.weight', 'class_embed.bias'):
        num_classes = len(rows) - 1
        if sorted(order) != list(range(num_classes)):
            raise ValueError(
                f'order must name each of the {num_classes} classes once, got {list(order)}'
            )
        changed[key] = rows[torch.tensor([*order, num_classes], device=rows.device)]
    return changed


def resize_queries(state_dict: StateDict, number: int, noise: float = 0.1) -> dict[str, Tensor]:
    """Keep the first ``number`` queries, or add noisy copies up to that number.

    Kept rows do not change. Copies follow the order of the originals, several times if needed.
    Equal queries would stay equal in training, so copies get normal noise of ``noise`` times the
    table's standard deviation, drawn from the global generator.

    Raises:
        ValueError: ``number`` is not positive, or there is no query.
    """
    changed = dict(state_dict)
    for key, rows in _tables(state_dict, 'query_feat.weight', 'query_embed.weight'):
        changed[key] = _resized(rows, number, noise)
    return changed


def resize_classes(state_dict: StateDict, number: int, noise: float = 0.1) -> dict[str, Tensor]:
    """Keep the first ``number`` classes, or add noisy copies, as ``resize_queries`` does.

    The row of no-object stays the last. What a new row stands for, only a training decides.

    Raises:
        ValueError: ``number`` is not positive, or there is no class.
    """
    changed = dict(state_dict)
    for key, rows in _tables(state_dict, 'class_embed.weight', 'class_embed.bias'):
        changed[key] = torch.cat([_resized(rows[:-1], number, noise), rows[-1:]])
    return changed


def _tables(state_dict: StateDict, *names: str) -> list[tuple[str, Tensor]]:
    keys = [f'{head_prefix(state_dict)}.decoder.{name}' for name in names]
    if missing := [key for key in keys if key not in state_dict]:
        raise ValueError(f'the checkpoint does not hold {missing[0]}')
    return [(key, state_dict[key]) for key in keys]


def _resized(rows: Tensor, number: int, noise: float) -> Tensor:
    if number < 1 or not len(rows):
        raise ValueError(f'cannot make {number} rows of {len(rows)}')
    if number <= len(rows):
        return rows[:number]
    source = torch.arange(len(rows), number, device=rows.device) % len(rows)
    scale = noise * rows.std(correction=0)
    copies = rows[source]
    return torch.cat([rows, copies + scale * torch.randn_like(copies)])
