"""Report how well weights fit a model: a table of counts, and the differences in words."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from mmseg_m2f.checkpoints import HEADS

# These are computed, not learned, and other implementations do not save them.
_COMPUTED = ('num_batches_tracked', 'relative_position_index')
_SHOWN = 3


class ModuleMatch(NamedTuple):
    """The names of one module's tensors, sorted by what the load does with them.

    Args:
        module: A child of the model; a head counts as pixel decoder, decoder and ``heads``, its
            output layers.
        matched: loaded as they are.
        reshaped: loaded after resizing.
        missing: tensors of the model that keep their values, because the checkpoint has none or
            one of another shape.
        unexpected: tensors of the checkpoint for which the model has no place.
    """

    module: str
    matched: list[str]
    reshaped: list[str]
    missing: list[str]
    unexpected: list[str]

    @property
    def num_loaded(self) -> int:
        """Return the number of tensors that the checkpoint fills."""
        return len(self.matched) + len(self.reshaped)

    @property
    def num_expected(self) -> int:
        """Return the number of tensors that the model has."""
        return self.num_loaded + len(self.missing)

    @property
    def share(self) -> float:
        """Return the share of loaded tensors among those of both sides, in [0, 1].

        Unexpected tensors count too: a deeper checkpoint fills a shallower model completely and is
        still another network.
        """
        return self.num_loaded / (self.num_expected + len(self.unexpected))


def compare(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor], reshaped: Collection[str] = ()
) -> list[ModuleMatch]:
    """Compare two state dicts name by name, per module.

    Args:
        model: the state dict of the model.
        weights: the checkpoint's tensors under the model's names.
        reshaped: the names of ``weights`` that were resized before.
    """
    matches: dict[str, ModuleMatch] = {}
    for key in dict.fromkeys((*model, *weights)):  # the model's order first
        if key.endswith(_COMPUTED):
            continue
        match = matches.setdefault(_module_of(key), ModuleMatch(_module_of(key), [], [], [], []))
        if key not in model:
            match.unexpected.append(key)
        elif key not in weights or weights[key].shape != model[key].shape:
            match.missing.append(key)
        elif key in reshaped:
            match.reshaped.append(key)
        else:
            match.matched.append(key)
    return list(matches.values())


def _module_of(key: str) -> str:
    first, _, rest = key.partition('.')
    if first not in HEADS:
        return first
    if rest.startswith(('decoder.class_embed.', 'decoder.mask_embed.')):
        return 'heads'
    return rest.partition('.')[0]


def misfits(matches: Iterable[ModuleMatch], min_matched: float) -> list[ModuleMatch]:
    """Return the modules of the model with a share below ``min_matched``."""
    return [match for match in matches if match.num_expected and match.share < min_matched]


def level(matches: Iterable[ModuleMatch]) -> int:
    """Return the log level of the table: a warning if tensors keep their random values."""
    return logging.WARNING if any(match.missing for match in matches) else logging.INFO


def table(matches: Sequence[ModuleMatch]) -> str:
    """Return one line if everything fits, else a row per module and the first names that do not."""
    if not any(match.reshaped or match.missing or match.unexpected for match in matches):
        counts = ', '.join(f'{match.module} {len(match.matched)}' for match in matches)
        return f'all tensors matched: {counts}'
    rows = [list(ModuleMatch._fields)]
    rows += [[match.module, *(str(len(names)) for names in match[1:])] for match in matches]
    lines = [
        f'{name:<16}' + ''.join(f'{number:>12}' for number in numbers) for name, *numbers in rows
    ]
    lines += [
        f'{what} in {match.module}: {_first(names)}'
        for match in matches
        for what, names in (('missing', match.missing), ('unexpected', match.unexpected))
        if names
    ]
    return '\n'.join(['', *lines])


def description(
    match: ModuleMatch, model: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> str:
    """Describe in words how the two sides of a module differ."""
    other_shape = [
        f'{key} {_size(weights[key])} for {_size(model[key])}'
        for key in match.missing
        if key in weights
    ]
    absent = [key for key in match.missing if key not in weights]
    differences = [
        f'{what}: {_first(names)}'
        for what, names in (
            ('of another shape', other_shape),
            ('only in the model', absent),
            ('only in the checkpoint', match.unexpected),
        )
        if names
    ]
    return (
        f'{match.module}: {match.num_loaded} of {match.num_expected} tensors match; '
        f'{"; ".join(differences)}'
    )


def _first(names: Sequence[str]) -> str:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def _size(tensor: Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'scalar'
