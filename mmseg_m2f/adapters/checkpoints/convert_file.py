"""Checkpoint files from one project to another."""

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
from mmseg_m2f.adapters.checkpoints.backbone import fit_backbone
from mmseg_m2f.adapters.checkpoints.class_names import class_names
from mmseg_m2f.adapters.checkpoints.convert_on_load import (
    ORDER_OF_MMDET,
    fit,
    head_name,
    load_rules,
)
from mmseg_m2f.adapters.checkpoints.loader import CheckpointError
from mmseg_m2f.adapters.checkpoints.write import write_weights
from mmseg_m2f.adapters.things import has_things_first

SUFFIXES = {'mmseg_m2f': '.pth', 'detectron2': '.pkl', 'mmdet': '.pth', 'mmseg': '.pth'}
SUFFIXES['hf'] = '.safetensors'
ORDERS = ('things-first', 'official')

_OUR_ORDER = (
    'the classes keep the order of this model, whose things are mixed with its stuff; heads of '
    'MMDetection count the things first: for one of those take --reorder things-first'
)


class Conversion(NamedTuple):
    """What was converted: the layout that was found, and how many tensors were written where."""

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
    """Writes the weights of ``src`` under the names of ``target``, whole or not at all.

    Args:
        src: a file, a folder of Hugging Face, or an address MMEngine knows.
        dst: ``.pkl`` for Detectron2, ``.safetensors`` for Hugging Face, else ``.pth``. Beside a
            ``model.safetensors`` the ``config.json`` is written that ``from_pretrained`` reads.
        config: of a model with one of our heads that the weights have to fit: as many classes, and
            in each module at least ``min_matched`` of the tensors, which is logged. Its head's
            name is taken if ``target`` is ours.
        source: the layout of ``src``: ``auto``, or one of `checkpoints.LAYOUTS` or, for backbones,
            `checkpoints.BACKBONE_LAYOUTS`.
        target: one of `checkpoints.LAYOUTS`; a backbone alone can become ours only.
        min_matched: in [0, 1].
        reorder: the new order of the classes, as their old indices; or by the ``thing_ids`` of a
            config in the official order ``things-first``, from there to the order of mmdet's
            panoptic data sets, or ``official``, the way back.

    Raises:
        CheckpointError: ``src`` is no checkpoint, or its weights do not fit the target.
        ValueError: wrong arguments.
    """
    _check_arguments(dst, source, target, reorder, config)
    checkpoint = CheckpointLoader.load_checkpoint(os.fspath(src), map_location='cpu')
    stored = _weights_of(checkpoint, src)
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
        _check_fit(model, weights, min_matched)
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


def _weights_of(checkpoint: Any, src: str | Path) -> dict[str, Tensor]:
    weights = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f'{src} holds no weights: neither state_dict nor model')
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f'{src} holds no weights: its state_dict has {type(value).__name__} under {key!r}, '
                'where names of tensors and tensors are wanted'
            )
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _layout(stored: Mapping[str, Tensor], source: str) -> str:
    """The layout the names tell; ``source`` may only say which of two with the same names."""
    found = checkpoints.detect_layout(stored)
    # An older timm file has the names of torchvision's or Microsoft's.
    same = source == 'timm' and found in checkpoints.BACKBONE_LAYOUTS
    if source in ('auto', found) or same:
        return found if source == 'auto' else source
    raise ValueError(f'its names are those of {found}, not of {source}')


def _build(config: str | Path | Config) -> nn.Module:
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    if 'model' not in cfg:
        raise ValueError(f'{config} has no model')
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            model = MODELS.build(cfg.model)
    except (KeyError, TypeError) as error:  # of the registry; its KeyError has the text in quotes
        raise ValueError(
            f'the model of the config cannot be built: {error.args[0] if error.args else error}'
        ) from error
    head_name(model)
    return model


def _head_for(target: str, stored: Mapping[str, Tensor]) -> str:
    """The head's name without a config; loading takes either."""
    if target == 'mmdet' or (
        target != 'mmseg' and any(key.startswith('panoptic_head.') for key in stored)
    ):
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
    """The classes' new order; a likely wrong one is logged or refused."""
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
            "MMDetection's heads count the things first already, and its layout is that of this "
            'file. For our order take --reorder official; if its classes are in our order still, '
            'give the new order as numbers: convert_checkpoint(..., reorder=[...])'
        )
    order = checkpoints.things_first(is_thing.nonzero().flatten().tolist(), len(is_thing))
    return order if reorder == 'things-first' else [order.index(i) for i in range(len(order))]


def _check_fit(model: nn.Module, weights: dict[str, Tensor], min_matched: float) -> None:
    with load_rules(min_matched=min_matched, other_classes=False):
        if any(key.startswith(f'{head_name(model)}.') for key in weights):
            fit(model, weights)
        else:
            expected = model.state_dict()
            fit_backbone(
                'the file', {k: expected[k] for k in expected if k.startswith('backbone.')}, weights
            )
