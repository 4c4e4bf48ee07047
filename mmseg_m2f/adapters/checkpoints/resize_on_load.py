"""Resize weights for a model with other queries, classes or Swin windows."""

import logging
from collections.abc import Mapping

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError

_INDEX, _TABLE = '.relative_position_index', '.relative_position_bias_table'


def fit_queries_and_classes(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor], head: str, other_classes: bool
) -> dict[str, Tensor]:
    """Give the queries and the class layer the model's numbers of rows.

    New rows are noisy copies. They are the same in every process, whatever its random state,
    because each process of a training loads for itself. ``model`` is the state dict of the model,
    ``weights`` has its names, ``head`` is its name for its head.

    Raises:
        CheckpointError: The number of classes differs, and ``other_classes`` is False.
    """
    fitted = dict(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for what, table, resize in (
            ('queries', f'{head}.decoder.query_feat.weight', checkpoints.resize_queries),
            ('classes', f'{head}.decoder.class_embed.weight', checkpoints.resize_classes),
        ):
            if table not in model or table not in fitted:
                continue
            # The last row of the class layer is no class: it stands for no object.
            extra = 1 if what == 'classes' else 0
            given, wanted = len(fitted[table]) - extra, len(model[table]) - extra
            if given == wanted or fitted[table].shape[1:] != model[table].shape[1:]:
                continue
            if what == 'classes' and not other_classes:
                raise _other_classes(given, wanted)
            fitted = resize(fitted, wanted)
            done = 'the first are kept' if given > wanted else 'noisy copies fill up the rest'
            _warn(f'the checkpoint has {given} {what}, the model {wanted}: {done}')
    return fitted


def fit_windows(model: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Resize Swin's position biases to the model's windows; the position index is the model's."""
    tables = {
        key: checkpoints.resize_window(table, len(model[key]))
        for key, table in weights.items()
        if key.endswith(_TABLE)
        and key in model
        and len(model[key]) != len(table)
        and model[key].shape[1:] == table.shape[1:]
    }
    indices = {key: model[key] for key in weights if key.endswith(_INDEX) and key in model}
    # mmseg's Swin has resized the biases by now and left the index as it was.
    if tables or any(weights[key].shape != indices[key].shape for key in indices):
        _warn(
            'the checkpoint has other windows in its Swin than the model: the relative position '
            'biases were resized, so the predictions differ from those of the checkpoint'
        )
    return {**weights, **tables, **indices}


def without_other_shapes(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Leave out tensors of another shape than the model's, which torch refuses to load."""
    return {
        key: value
        for key, value in weights.items()
        if key not in model or value.shape == model[key].shape
    }


def _other_classes(given: int, wanted: int) -> CheckpointError:
    return CheckpointError(
        f'the checkpoint has {given} classes, the model {wanted}, so its predictions would mean '
        'nothing. Take the config of the data set it was trained on, or start a training for '
        f'{wanted} classes from it (load_from of tools/train.py)'
    )


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
