"""Convert checkpoint files from one project to another."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints import convert_on_load
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.fit import State
from mmseg_m2f.adapters.checkpoints.formats import weights_of
from mmseg_m2f.adapters.checkpoints.rules import LoadRules
from mmseg_m2f.adapters.checkpoints.write import class_names, write_weights
from mmseg_m2f.adapters.things import has_things_first

SUFFIXES = dict.fromkeys(checkpoints.LAYOUTS, '.pth') | {'detectron2': '.pkl', 'hf': '.safetensors'}

_OUR_ORDER = (
    'the classes keep the order of this model, whose things are mixed with its stuff. MMDetection '
    'counts the things first: for its heads use --reorder things-first'
)


class Conversion(NamedTuple):
    """The result of a conversion: the layout found, and how many tensors were written where."""

    layout: str
    target: str
    num_tensors: int
    path: Path


def convert_checkpoint(
    src: str | Path,
    dst: str | Path,
    config: str | Path | Config | None = None,
    source: str = 'auto',
    target: str = 'mmseg_m2f',
    min_matched: float = 0.95,
    reorder: str | Sequence[int] | None = None,
) -> Conversion:
    """Write the weights of ``src`` to ``dst`` under the names of another project.

    Args:
        src: A file, a folder of Hugging Face, or an address that MMEngine knows.
        dst: the file to write, complete or not at all: ``.pkl`` for Detectron2, ``.safetensors``
            for Hugging Face, else ``.pth``. ``model.safetensors`` gets a ``config.json`` beside it.
        config: the config of a model that the weights must fit: as many classes, and in each
            module at least ``min_matched`` of the tensors, in [0, 1]. The head gets its name.
        source: ``auto``, one of `checkpoints.LAYOUTS`, or one of `checkpoints.BACKBONE_LAYOUTS`.
        target: one of `checkpoints.LAYOUTS`; a backbone alone can become ours only.
        min_matched: see ``config``.
        reorder: the old indices of the classes in their new order; or ``things-first``, from the
            official order to that of mmdet's panoptic data sets; or ``official``, the way back.
            The last two need ``config``, whose ``thing_ids`` are those of the official order.

    Raises:
        CheckpointError: ``src`` is no checkpoint, or its weights do not fit.
        ValueError: An argument is wrong.
    """
    _check_one_of('source', source, ('auto', *checkpoints.LAYOUTS, *checkpoints.BACKBONE_LAYOUTS))
    _check_one_of('target', target, SUFFIXES)
    if Path(dst).suffix != SUFFIXES[target]:
        raise ValueError(f'files of {target} end in {SUFFIXES[target]}, got {os.fspath(dst)!r}')
    if isinstance(reorder, str):
        _check_one_of('reorder', reorder, ('things-first', 'official'))
        if config is None:
            raise ValueError(f'{reorder} needs a config, whose head has thing_ids')
    checkpoint = CheckpointLoader.load_checkpoint(os.fspath(src), map_location='cpu')
    stored = convert_on_load.unwrap(str(src), weights_of(checkpoint, str(src)))
    model = None if config is None else _build(config)
    is_detector = any(key.startswith('panoptic_head.') for key in stored)
    head = 'panoptic_head' if is_detector else 'decode_head'
    if model is not None:
        head = convert_on_load.head_name(model)
    layout, weights = convert_on_load.convert(str(src), stored, head, source)
    try:
        order = _order(reorder, model, layout, target)
        if order is not None:
            weights = checkpoints.reorder_classes(weights, order)
        written = checkpoints.to_theirs(weights, target)
    except ValueError as error:
        raise CheckpointError(f'{src} cannot be converted: {error}') from error
    if model is not None:
        _check_fit(model, weights, LoadRules(min_matched=min_matched, other_classes=False))
    write_weights(written, target, Path(dst), class_names(checkpoint.get('meta'), order))
    return Conversion(layout, target, len(written), Path(dst))


def _check_one_of(what: str, value: str, known: Sequence[str] | dict[str, str]) -> None:
    if value not in known:
        raise ValueError(f'{what} must be one of {", ".join(known)}, got {value!r}')


def _build(config: str | Path | Config) -> nn.Module:
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    if 'model' not in cfg:
        raise ValueError(f'{config} has no model')
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            return MODELS.build(cfg.model)
    except (KeyError, TypeError) as error:
        # A KeyError puts quotes around its text, so take the text itself.
        reason = error.args[0] if error.args else error
        raise ValueError(f'the model of the config cannot be built: {reason}') from error


def _order(
    reorder: str | Sequence[int] | None, model: nn.Module | None, layout: str, target: str
) -> Sequence[int] | None:
    """Return the new order of the classes; warn about or refuse one that is likely wrong."""
    head = None if model is None else getattr(model, convert_on_load.head_name(model))
    if reorder is None:
        is_mixed = head is not None and not has_things_first(head)
        if is_mixed and (layout == 'mmdet') != (target == 'mmdet'):
            message = convert_on_load.ORDER_OF_MMDET if layout == 'mmdet' else _OUR_ORDER
            print_log(message, logger='current', level=logging.WARNING)
        return None
    if not isinstance(reorder, str):
        return reorder
    is_thing = getattr(head, 'is_thing', None)
    if is_thing is None:
        raise ValueError(f'{reorder} needs the config of a model with things and stuff')
    if reorder == 'things-first' and layout == 'mmdet' and not has_things_first(head):
        raise ValueError(
            'a file of MMDetection counts the things first already. For our order use --reorder '
            'official; for any other give numbers: convert_checkpoint(..., reorder=[...])'
        )
    order = checkpoints.things_first(is_thing.nonzero().flatten().tolist(), len(is_thing))
    return order if reorder == 'things-first' else [order.index(i) for i in range(len(order))]


def _check_fit(model: nn.Module, weights: State, rules: LoadRules) -> None:
    if any(key.startswith(f'{convert_on_load.head_name(model)}.') for key in weights):
        convert_on_load.weights_for(model, weights, rules)
        return
    expected = {k: v for k, v in model.state_dict().items() if k.startswith('backbone.')}
    convert_on_load.fit_backbone('the file', expected, weights, rules)
