"""Weights under our names for a model with other queries, classes or windows."""

import logging
from collections.abc import Mapping

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.loader import CheckpointError

_INDEX, _TABLE = '.relative_position_index', '.relative_position_bias_table'


def with_rows_of(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor], head: str, other_classes: bool
) -> dict[str, Tensor]:
    """The weights for the model's numbers of queries and classes; what changes is logged.

    The same on every process, whatever its random numbers: they load each for themselves.

    Raises:
        CheckpointError: the classes are not as many, and ``other_classes`` is False.
    """
    fitted = dict(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for what, table, spare, resize in (
            ('queries', f'{head}.decoder.query_feat.weight', 0, checkpoints.resize_queries),
            ('classes', f'{head}.decoder.class_embed.weight', 1, checkpoints.resize_classes),
        ):
            if table not in model or table not in fitted:
                continue
            given, wanted = len(fitted[table]) - spare, len(model[table]) - spare
            if given == wanted or fitted[table].shape[1:] != model[table].shape[1:]:
                continue
            if what == 'classes' and not other_classes:
                _refuse_classes(given, wanted)
            fitted = resize(fitted, wanted)
            done = 'it takes the first' if given > wanted else 'noisy copies fill it up'
            _warn(f'the checkpoint has {given} {what}, the model {wanted}: {done}')
    return fitted


def with_windows_of(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Swin's position biases for the model's windows, with a warning.

    The index belongs to the window: it is always the model's.
    """
    resized = {
        key: checkpoints.resize_window(table, len(model[key]))
        for key, table in weights.items()
        if key.endswith(_TABLE)
        and key in model
        and len(model[key]) != len(table)
        and model[key].shape[1:] == table.shape[1:]
    }
    indices = {key: model[key] for key in weights if key.endswith(_INDEX) and key in model}
    # mmseg's Swin has resized the biases by now, and left the index as it was.
    if resized or any(weights[key].shape != indices[key].shape for key in indices):
        _warn(
            'the checkpoint has other windows in its Swin than the model: the relative position '
            'biases were resized, and the predictions are not those of the checkpoint any more'
        )
    return {**weights, **resized, **indices}


def without_other_shapes(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What torch does not refuse: tensors of the model's shapes, and those it does not have."""
    return {
        key: value
        for key, value in weights.items()
        if key not in model or value.shape == model[key].shape
    }


def _refuse_classes(given: int, wanted: int) -> None:
    raise CheckpointError(
        f'the checkpoint has {given} classes, the model {wanted}, so its predictions would '
        'mean nothing: take the config of the data set it was trained on, or train on from '
        f'it (load_from of tools/train.py) for {wanted} classes'
    )


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
