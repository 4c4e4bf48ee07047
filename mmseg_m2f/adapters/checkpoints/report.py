"""How well weights fit a model: counts per module, in a table, and what is wrong in words."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmseg_m2f.checkpoints import HEADS

# Computed, not learnt: other implementations do not save them.
_COMPUTED = ('num_batches_tracked', 'relative_position_index')
_SHOWN = 3


class ModuleMatch(NamedTuple):
    """The names of one module's tensors, by what became of them.

    ``missing`` are the model's that stay as they were, tensors of another shape among them;
    ``unexpected`` the checkpoint's for which the model has no place.
    """

    module: str
    matched: list[str]
    reshaped: list[str]
    missing: list[str]
    unexpected: list[str]

    @property
    def share(self) -> float:
        """Tensors that found each other among all of both sides, in [0, 1].

        A deeper checkpoint fills a shallower model without a gap and is still another network, so
        what is left over counts as well.
        """
        found = len(self.matched) + len(self.reshaped)
        return found / (found + len(self.missing) + len(self.unexpected))

    @property
    def num_expected(self) -> int:
        """How many tensors the model has here."""
        return len(self.matched) + len(self.reshaped) + len(self.missing)


def compare(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor], reshaped: Collection[str] = ()
) -> list[ModuleMatch]:
    """Both state dicts name by name, grouped by module; ``reshaped`` were fitted before."""
    matches: dict[str, ModuleMatch] = {}
    for key in dict.fromkeys((*model, *weights)):  # the model's order first
        if key.endswith(_COMPUTED):
            continue
        match = matches.setdefault(_module_of(key), ModuleMatch(_module_of(key), [], [], [], []))
        if key not in model:
            match.unexpected.append(key)
        elif key not in weights or weights[key].shape != model[key].shape:
            match.missing.append(key)
        else:
            (match.reshaped if key in reshaped else match.matched).append(key)
    return list(matches.values())


def _module_of(key: str) -> str:
    first, _, rest = key.partition('.')
    if first not in HEADS:
        return first
    if rest.startswith(('decoder.class_embed.', 'decoder.mask_embed.')):
        return 'heads'
    return rest.partition('.')[0]


def misfits(matches: Iterable[ModuleMatch], min_matched: float) -> list[ModuleMatch]:
    """Modules of the model of which less than ``min_matched`` was found."""
    return [match for match in matches if match.num_expected and match.share < min_matched]


def level(matches: Iterable[ModuleMatch]) -> int:
    """Of a log entry: a warning if something is missing, for it stays as it was drawn."""
    return logging.WARNING if any(match.missing for match in matches) else logging.INFO


def table(matches: Sequence[ModuleMatch]) -> str:
    """One line if everything fits, else a row per module and the first names that do not."""
    if not any(match.reshaped or match.missing or match.unexpected for match in matches):
        counts = ', '.join(f'{match.module} {len(match.matched)}' for match in matches)
        return f'all tensors matched: {counts}'
    rows = [list(ModuleMatch._fields)]
    rows += [[match.module, *(str(len(names)) for names in match[1:])] for match in matches]
    lines = [
        f'{name:<16}' + ''.join(f'{number:>12}' for number in numbers) for name, *numbers in rows
    ]
    lines += [
        f'{what} in {match.module}: {shown(names)}'
        for match in matches
        for what, names in (('missing', match.missing), ('unexpected', match.unexpected))
        if names
    ]
    return '\n'.join(['', *lines])


def description(
    match: ModuleMatch, model: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> str:
    """What the two sides of a module have that the other has not."""
    found = len(match.matched) + len(match.reshaped)
    other_shape = [
        f'{key} {_size(weights[key])} for {_size(model[key])}'
        for key in match.missing
        if key in weights
    ]
    absent = [key for key in match.missing if key not in weights]
    parts = [
        f'{what}: {shown(names)}'
        for what, names in (
            ('of another shape', other_shape),
            ('only in the model', absent),
            ('only in the checkpoint', match.unexpected),
        )
        if names
    ]
    return f'{match.module}: {found} of {match.num_expected} tensors match; {"; ".join(parts)}'


def shown(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def _size(tensor: Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) if tensor.shape != torch.Size([]) else 'scalar'
