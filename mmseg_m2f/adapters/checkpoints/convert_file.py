"""Convert checkpoint files from one project to another."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.backbone import fitted_backbone
from mmseg_m2f.adapters.checkpoints.class_names import class_names
from mmseg_m2f.adapters.checkpoints.convert_on_load import (
    ORDER_OF_MMDET,
    head_name,
    unwrap,
    weights_for,
)
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.formats import weights_of
from mmseg_m2f.adapters.checkpoints.rules import LoadRules
from mmseg_m2f.adapters.checkpoints.write import write_weights
from mmseg_m2f.adapters.things import has_things_first

SUFFIXES = {
    'mmseg_m2f': '.pth',
    'detectron2': '.pkl',
    'mmdet': '.pth',
    'mmseg': '.pth',
    'hf': '.safetensors',
}
ORDERS = ('things-first', 'official')

_OUR_ORDER = (
    'the classes keep the order of this model, whose things are mixed with its stuff. Heads of '
    'MMDetection count the things first: for one of those use --reorder things-first'
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
            for Hugging Face, else ``.pth``. Beside a ``model.safetensors`` a ``config.json`` is
            written.
        config: the config of a model that the weights must fit: as many classes, and in each
            module at least ``min_matched`` of the tensors. The fit is logged. If ``target`` is
            ours, the head gets the name it has in this model.
        source: the layout of ``src``: ``auto``, one of `checkpoints.LAYOUTS`, or one of
            `checkpoints.BACKBONE_LAYOUTS`.
        target: one of `checkpoints.LAYOUTS`; a backbone alone can become ours only.
        min_matched: smallest share of matching tensors, in [0, 1].
        reorder: the new order of the classes. Either a list of their old indices; or
            ``things-first``, from the official order to that of mmdet's panoptic data sets; or
            ``official``, the way back. The last two need ``config``, whose ``thing_ids`` are those
            of the official order.

    Raises:
        CheckpointError: ``src`` is no checkpoint, or its weights do not fit.
        ValueError: An argument is wrong.
    """
    _check_arguments(dst, source, target, reorder, config)
    checkpoint = CheckpointLoader.load_checkpoint(os.fspath(src), map_location='cpu')
    stored = unwrap(str(src), weights_of(checkpoint, str(src)))
    model = None if config is None else _build(config)
    try:
        layout = _layout(stored, source)
        head = _head_for(target, stored) if model is None else head_name(model)
        weights = checkpoints.to_ours(stored, layout, head)
        _check_has_head(weights, target)
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


def _check_arguments(dst: str | Path, source: str, target: str, reorder: Any, config: Any) -> None:
    known = ('auto', *checkpoints.LAYOUTS, *checkpoints.BACKBONE_LAYOUTS)
    if source not in known:
        raise ValueError(f'the source must be one of {", ".join(known)}, got {source!r}')
    if target not in SUFFIXES:
        raise ValueError(f'the target must be one of {", ".join(SUFFIXES)}, got {target!r}')
    if Path(dst).suffix != SUFFIXES[target]:
        raise ValueError(f'files of {target} end in {SUFFIXES[target]}, got {os.fspath(dst)!r}')
    if isinstance(reorder, str) and reorder not in ORDERS:
        raise ValueError(f'reorder must be one of {", ".join(ORDERS)}, got {reorder!r}')
    if isinstance(reorder, str) and config is None:
        raise ValueError(f'{reorder} needs a config: the thing_ids of its head say what a thing is')


def _layout(stored: Mapping[str, Tensor], source: str) -> str:
    """Return the layout that the names tell; ``source`` decides between two with the same names."""
    found = checkpoints.detect_layout(stored)
    # An older file of timm has the names of torchvision's or Microsoft's.
    may_be_timm = source == 'timm' and found in checkpoints.BACKBONE_LAYOUTS
    if source != 'auto' and source != found and not may_be_timm:
        raise ValueError(f'its names are those of {found}, not of {source}')
    return found if source == 'auto' else source


def _build(config: str | Path | Config) -> nn.Module:
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    if 'model' not in cfg:
        raise ValueError(f'{config} has no model')
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            model = MODELS.build(cfg.model)
    except (KeyError, TypeError) as error:
        # A KeyError puts quotes around its text, so take the text itself.
        raise ValueError(
            f'the model of the config cannot be built: {error.args[0] if error.args else error}'
        ) from error
    head_name(model)
    return model


def _head_for(target: str, stored: Mapping[str, Tensor]) -> str:
    """Return a name for the head when there is no config; loading takes either name."""
    is_detector = any(key.startswith('panoptic_head.') for key in stored)
    if target == 'mmdet' or (target != 'mmseg' and is_detector):
        return 'panoptic_head'
    return 'decode_head'


def _check_has_head(weights: Mapping[str, Tensor], target: str) -> None:
    heads = tuple(f'{name}.' for name in checkpoints.HEADS)
    if target != 'mmseg_m2f' and not any(key.startswith(heads) for key in weights):
        raise ValueError(
            'it holds a backbone only, which can become mmseg_m2f only (--to mmseg_m2f); mmseg and '
            'mmdet have the same names for it'
        )


def _order(
    reorder: str | Sequence[int] | None, model: nn.Module | None, layout: str, target: str
) -> Sequence[int] | None:
    """Return the new order of the classes; warn about or refuse one that is likely wrong."""
    head = None if model is None else getattr(model, head_name(model))
    if reorder is None:
        is_mixed = head is not None and not has_things_first(head)
        if is_mixed and (layout == 'mmdet') != (target == 'mmdet'):
            message = f'the checkpoint {ORDER_OF_MMDET}' if layout == 'mmdet' else _OUR_ORDER
            print_log(message, logger='current', level=logging.WARNING)
        return None
    if not isinstance(reorder, str):
        return reorder
    is_thing = getattr(head, 'is_thing', None)
    if is_thing is None:
        raise ValueError(f'{reorder} needs the config of a model with things and stuff')
    if reorder == 'things-first' and layout == 'mmdet' and not has_things_first(head):
        raise ValueError(
            'MMDetection counts the things first already, and this file has its layout. For our '
            'order use --reorder official. If its classes are in our order still, give the new '
            'order as numbers: convert_checkpoint(..., reorder=[...])'
        )
    order = checkpoints.things_first(is_thing.nonzero().flatten().tolist(), len(is_thing))
    return order if reorder == 'things-first' else [order.index(i) for i in range(len(order))]


def _check_fit(model: nn.Module, weights: dict[str, Tensor], rules: LoadRules) -> None:
    if any(key.startswith(f'{head_name(model)}.') for key in weights):
        weights_for(model, weights, rules)
        return
    expected = {k: v for k, v in model.state_dict().items() if k.startswith('backbone.')}
    fitted_backbone('the file', expected, weights, rules)
