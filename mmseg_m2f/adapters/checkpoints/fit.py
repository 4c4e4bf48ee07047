"""Fit weights to a model: resize what may differ, log what fits, refuse the rest."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.rules import LoadRules

_INDEX, _TABLE = '.relative_position_index', '.relative_position_bias_table'
# These are computed, not learned, and other implementations do not save them.
_COMPUTED = ('.num_batches_tracked', _INDEX)
_SHOWN = 3
# The tables whose number of rows may differ, and how many rows of them are no class or query: the
# last row of the class layer stands for no object.
_ROWS = (
    ('queries', 'query_feat', 0, checkpoints.resize_queries),
    ('classes', 'class_embed', 1, checkpoints.resize_classes),
)

State = Mapping[str, Tensor]


def fit(
    what: str, model: State, weights: State, rules: LoadRules, mismatch: str
) -> dict[str, Tensor]:
    """Return weights as a model can load them; the log says how they fit.

    ``model`` is the state dict of the model, whose names ``weights`` have. The result has the
    model's shapes, or names that the model does not have. ``mismatch`` begins the error.

    Raises:
        CheckpointError: The rules forbid the load.
    """
    fitted = _with_windows(model, _with_rows(model, weights, rules.other_classes))
    resized = {key for key, value in fitted.items() if value is not weights[key]}
    modules = compare(model, fitted, resized)
    level = logging.WARNING if any(module.missing for module in modules) else logging.INFO
    print_log(f'loading the {what}: {_table(modules)}', logger='current', level=level)
    # Of a module that the model does not have, nothing is missing.
    misfits = [m for m in modules if m.share < rules.min_matched and (m.share or m.missing)]
    if misfits:
        raise CheckpointError(
            f'{mismatch} (less than {rules.min_matched:.0%} match). '
            f'{". ".join(map(str, misfits))}. Take a checkpoint of this architecture, or lower the '
            'bound: --min-matched, mmseg_m2f.adapters.checkpoints.rules.load_rules(min_matched=...)'
        )
    # torch refuses tensors of another shape.
    return {k: v for k, v in fitted.items() if k not in model or v.shape == model[k].shape}


class ModuleFit(NamedTuple):
    """The names of one module's tensors, sorted by what the load does with them.

    A head counts as pixel decoder, decoder and ``heads``, its output layers. Missing tensors keep
    the model's values: the checkpoint has none, or one of another shape, which follows the name.
    """

    module: str
    matched: list[str]
    reshaped: list[str]
    missing: list[str]
    unexpected: list[str]

    @property
    def share(self) -> float:
        """Return the share of loaded tensors among those of both sides, in [0, 1].

        Unexpected tensors count too: a deeper checkpoint fills a shallower model completely and is
        still another network.
        """
        return len(self.matched + self.reshaped) / sum(map(len, self[1:]))

    def __str__(self) -> str:
        """Say how many tensors match, and name the first that do not."""
        num_loaded = len(self.matched + self.reshaped)
        text = f'{self.module}: {num_loaded} of {num_loaded + len(self.missing)} tensors match'
        for what, names in (('missing', self.missing), ('unexpected', self.unexpected)):
            if names:
                more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
                text += f'; {what}: {", ".join(names[:_SHOWN])}{more}'
        return text


def compare(model: State, weights: State, resized: Collection[str]) -> list[ModuleFit]:
    """Compare two state dicts name by name; ``resized`` are the names of resized ``weights``."""
    modules: dict[str, ModuleFit] = {}
    for key in dict.fromkeys((*model, *weights)):  # the model's order first
        if key.endswith(_COMPUTED):
            continue
        name = _module_of(key)
        module = modules.setdefault(name, ModuleFit(name, [], [], [], []))
        if key not in model:
            module.unexpected.append(key)
        elif key not in weights:
            module.missing.append(key)
        elif weights[key].shape != model[key].shape:
            module.missing.append(f'{key} ({_size(weights[key])} for {_size(model[key])})')
        elif key in resized:
            module.reshaped.append(key)
        else:
            module.matched.append(key)
    return list(modules.values())


def _table(modules: Sequence[ModuleFit]) -> str:
    """Return one line if everything fits, else a row per module and the first names that do not."""
    if not any(module.reshaped or module.missing or module.unexpected for module in modules):
        counts = ', '.join(f'{module.module} {len(module.matched)}' for module in modules)
        return f'all tensors matched: {counts}'
    lines = ['', f'{"module":<16}' + ''.join(f'{name:>12}' for name in ModuleFit._fields[1:])]
    for name, *groups in modules:
        lines.append(f'{name:<16}' + ''.join(f'{len(group):>12}' for group in groups))
    lines += [str(module) for module in modules if module.missing or module.unexpected]
    return '\n'.join(lines)


def _module_of(key: str) -> str:
    first, _, rest = key.partition('.')
    if first not in checkpoints.HEADS:
        return first
    if rest.startswith(('decoder.class_embed.', 'decoder.mask_embed.')):
        return 'heads'
    return rest.partition('.')[0]


def _size(tensor: Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'scalar'


def _with_rows(model: State, weights: State, other_classes: bool) -> dict[str, Tensor]:
    """Give queries and classes the model's numbers of rows: cut, or filled up by noisy copies."""
    fitted = dict(weights)
    # Each process of a training loads for itself, and must get the same rows.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for what, name, extra, resize in _ROWS:
            places = [f'{head}.decoder.{name}.weight' for head in checkpoints.HEADS]
            table = next((key for key in places if key in model and key in fitted), None)
            if table is None:
                continue
            given, wanted = len(fitted[table]) - extra, len(model[table]) - extra
            if given == wanted or fitted[table].shape[1:] != model[table].shape[1:]:
                continue
            if what == 'classes' and not other_classes:
                raise CheckpointError(
                    f'the checkpoint has {given} classes, the model {wanted}, so its predictions '
                    'would mean nothing. Take the config of the data set it was trained on, or '
                    f'start a training for {wanted} classes from it (load_from of tools/train.py)'
                )
            fitted = resize(fitted, wanted)
            done = 'the first are kept' if given > wanted else 'noisy copies fill up the rest'
            _warn(f'the checkpoint has {given} {what}, the model {wanted}: {done}')
    return fitted


def _with_windows(model: State, weights: State) -> dict[str, Tensor]:
    """Resize Swin's position biases to the model's windows; the position index is the model's."""
    fitted, is_other = dict(weights), False
    for key in weights.keys() & model.keys():
        given, wanted = weights[key].shape, model[key].shape
        # mmseg's Swin may have resized the biases by now, and left the index as it was.
        if key.endswith(_INDEX):
            fitted[key] = model[key]
            is_other |= given != wanted
        elif key.endswith(_TABLE) and given[0] != wanted[0] and given[1:] == wanted[1:]:
            fitted[key] = checkpoints.resize_window(weights[key], wanted[0])
            is_other = True
    if is_other:
        _warn(
            'the checkpoint has other windows in its Swin than the model: the relative position '
            'biases were resized, so the predictions differ from those of the checkpoint'
        )
    return fitted


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
