"""Compare weights with a model, module by module, and say in words how they fit."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from mmseg_m2f.checkpoints import HEADS

# These are computed, not learned, and other implementations do not save them.
_COMPUTED = ('num_batches_tracked', 'relative_position_index')
_SHOWN = 3


class ModuleMatch(NamedTuple):
    """The names of one module's tensors, sorted by what the load does with them.

    Args:
        module: a child of the model; a head counts as pixel decoder, decoder and ``heads``, its
            output layers.
        matched: loaded as they are.
        reshaped: loaded after resizing.
        missing: tensors of the model that keep their values, because the checkpoint has none or
            one of another shape; then both shapes follow the name.
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

    def __str__(self) -> str:
        """Say how many tensors match, and name the first that do not."""
        text = f'{self.module}: {self.num_loaded} of {self.num_expected} tensors match'
        for what, names in (('missing', self.missing), ('unexpected', self.unexpected)):
            if names:
                more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
                text += f'; {what}: {", ".join(names[:_SHOWN])}{more}'
        return text


def compare(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor], reshaped: Collection[str] = ()
) -> list[ModuleMatch]:
    """Compare two state dicts name by name.

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
        elif key not in weights:
            match.missing.append(key)
        elif weights[key].shape != model[key].shape:
            match.missing.append(f'{key} ({_size(weights[key])} for {_size(model[key])})')
        elif key in reshaped:
            match.reshaped.append(key)
        else:
            match.matched.append(key)
    return list(matches.values())


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
    lines += [str(match) for match in matches if match.missing or match.unexpected]
    return '\n'.join(['', *lines])


def _module_of(key: str) -> str:
    first, _, rest = key.partition('.')
    if first not in HEADS:
        return first
    if rest.startswith(('decoder.class_embed.', 'decoder.mask_embed.')):
        return 'heads'
    return rest.partition('.')[0]


def _size(tensor: Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'scalar'
