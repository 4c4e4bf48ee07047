"""Any known layout made ready for one of our models: renamed, fitted, counted, checked."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints import report as load_report
from mmseg_m2f.adapters.checkpoints.loader import CheckpointError
from mmseg_m2f.adapters.checkpoints.resize_on_load import (
    with_rows_of,
    with_windows_of,
    without_other_shapes,
)
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.adapters.things import has_things_first

LAYOUT_NAMES = {
    'mmseg_m2f': 'mmseg_m2f',
    'detectron2': 'the official code (Detectron2)',
    'mmdet': "MMDetection's own head",
    'mmseg': "MMSegmentation's own head",
    'hf': 'Hugging Face',
    'torchvision': 'a ResNet of torchvision',
    'timm': 'a backbone of timm',
    'swin': "Microsoft's Swin",
}
LOWER_BOUND = (
    'If the difference is meant, lower the bound: --min-matched of our tools, or '
    'mmseg_m2f.adapters.checkpoints.convert_on_load.load_rules(min_matched=...)'
)


# Not put right by itself: what convert_checkpoint writes for mmdet without --reorder keeps our
# order and has the same names, and a load has to give back what was exported.
ORDER_OF_MMDET = (
    'has the layout of MMDetection, whose heads count the things first; the thing_ids of this '
    'model are mixed with its stuff. Its classes are taken as they stand, so those of a model that '
    'MMDetection trained come out under wrong names: convert it once, '
    'tools/convert_checkpoint.py FILE ours.pth --config CONFIG --reorder official'
)


@dataclass(frozen=True, kw_only=True)
class LoadRules:
    """What a load must fulfil.

    Args:
        min_matched: smallest share of matching tensors in each module of the model, in [0, 1].
        other_classes: whether a checkpoint with another number of classes is fitted (a training
            goes on from there) or refused (a test would give nonsense).
    """

    min_matched: float = 0.95
    other_classes: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.min_matched <= 1:
            raise ValueError(f'min_matched must be between 0 and 1, got {self.min_matched}')


_RULES: ContextVar[LoadRules] = ContextVar('load_rules', default=LoadRules())  # noqa: B039 - frozen


@contextmanager
def load_rules(min_matched: float = 0.95, other_classes: bool = True) -> Iterator[None]:
    """Other `LoadRules` for every load inside of the ``with`` statement."""
    token = _RULES.set(LoadRules(min_matched=min_matched, other_classes=other_classes))
    try:
        yield
    finally:
        _RULES.reset(token)


def current_rules() -> LoadRules:
    """Those that hold here."""
    return _RULES.get()


def head_name(model: nn.Module) -> str:
    """What ``model`` calls its head.

    Raises:
        ValueError: none of its children is one of our heads.
    """
    if (name := _find_head(model)) is not None:
        return name
    raise ValueError(
        f'{type(model).__name__} has no head of mmseg_m2f, neither as '
        f'{" nor as ".join(checkpoints.HEADS)}'
    )


def _find_head(model: nn.Module) -> str | None:
    names = (name for name in checkpoints.HEADS if isinstance(getattr(model, name, None), MaskHead))
    return next(names, None)


def converted(what: str, stored: Mapping[str, Tensor], part: str) -> tuple[str, dict[str, Tensor]]:
    """The layout the names tell, and the weights under ours; ``part`` is a head or the backbone.

    Raises:
        UnknownLayoutError: no layout has these names.
        CheckpointError: a known one has, and they cannot be converted.
    """
    head = part if part in checkpoints.HEADS else checkpoints.HEADS[0]
    try:
        layout = checkpoints.detect_layout(stored)
        weights = checkpoints.to_ours(stored, layout, head)
    except checkpoints.UnknownLayoutError:
        raise
    except ValueError as error:
        raise CheckpointError(f'{what} cannot be converted: {error}') from error
    print_log(
        f'{what} has the layout of {LAYOUT_NAMES[layout]}: converted for {part}', logger='current'
    )
    return layout, weights


def fit(model: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any known layout under the names of ``model``, with its numbers of rows.

    What was recognised, changed and left over is logged, per module.

    Raises:
        CheckpointError: the layout is not known, or the weights do not keep the `LoadRules`.
    """
    head, expected = head_name(model), model.state_dict()
    layout, weights = _renamed(stored, expected, head)
    if not any(key.startswith(f'{head}.') for key in weights) and _RULES.get().min_matched > 0:
        _refuse_headless(weights, layout, head)
    fitted = with_rows_of(expected, weights, head, _RULES.get().other_classes)
    fitted = with_windows_of(expected, fitted)
    check(expected, fitted, [key for key in fitted if fitted[key] is not weights.get(key)])
    if layout == 'mmdet' and not has_things_first(getattr(model, head)):
        print_log(f'the checkpoint {ORDER_OF_MMDET}', logger='current', level=logging.WARNING)
    return without_other_shapes(expected, fitted)


def _refuse_headless(weights: Mapping[str, Tensor], layout: str, head: str) -> NoReturn:
    others = sorted({key.partition('.')[0] for key in weights} - {'backbone'})
    if others:
        raise CheckpointError(
            f'the checkpoint has no head of a Mask2Former, the model has {head}: beside the '
            f'backbone it holds {others}. Take a checkpoint of a Mask2Former'
        )
    raise CheckpointError(
        f'the checkpoint holds a backbone only ({LAYOUT_NAMES[layout]}), the model has a head '
        'as well. To start a training from it, set model.backbone.init_cfg='
        "dict(type='Pretrained', checkpoint=FILE), which takes the file as it is; to load it as "
        'a part, set the least share to 0: load_rules(min_matched=0), --min-matched 0'
    )


def _renamed(
    stored: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str
) -> tuple[str, dict[str, Tensor]]:
    if _has_names_of(expected, stored, head):
        return 'mmseg_m2f', dict(stored)
    try:
        return converted('the checkpoint', stored, head)
    except checkpoints.UnknownLayoutError as error:
        raise CheckpointError(f'this is no checkpoint of a Mask2Former: {error}') from error


def _has_names_of(model: Mapping[str, Tensor], stored: Mapping[str, Tensor], head: str) -> bool:
    """Whether most names are the model's: of the head if there is one, for backbones agree.

    Parts of users' own have names that no layout knows.
    """
    pool = [key for key in stored if key.startswith(f'{head}.')]
    if not pool and not any(
        key.startswith(f'{name}.') for key in stored for name in checkpoints.HEADS
    ):
        pool = list(stored)
    return 2 * sum(key in model for key in pool) > len(pool)


def check(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor], reshaped: list[str] | None = None
) -> None:
    """Logs how ``weights`` fit the state dict of a model, both under our names.

    Raises:
        CheckpointError: a module has less than ``min_matched``.
    """
    matches = load_report.compare(model, weights, reshaped or ())
    print_log(
        f'loading the checkpoint: {load_report.table(matches)}',
        logger='current',
        level=load_report.level(matches),
    )
    min_matched = _RULES.get().min_matched
    wrong = load_report.misfits(matches, min_matched)
    if wrong:
        described = '. '.join(load_report.description(match, model, weights) for match in wrong)
        raise CheckpointError(
            f'the checkpoint is of another architecture than the model (less than '
            f'{min_matched:.0%} match). {described}. Take the config that '
            f'belongs to the checkpoint. {LOWER_BOUND}.'
        )


def check_resumable(model: nn.Module, checkpoint: Mapping[str, Any], file: str) -> None:
    """Makes sure that a run of MMEngine with such a model left ``checkpoint``, as read from file.

    Raises:
        CheckpointError: it is without a run's state, or its names are not the model's: then its
            optimiser counts the parameters in another order.
    """
    meta = checkpoint.get('meta') or {}
    stored = {
        key.removeprefix('module.'): value
        for key, value in checkpoint.get('state_dict', {}).items()
    }
    head = _find_head(model)
    if 'message_hub' not in checkpoint or not {'epoch', 'iter'} <= meta.keys():
        why = 'it has no optimiser state and no iteration of a training with MMEngine'
    elif head and not _has_names_of(model.state_dict(), stored, head):
        why = "its optimiser state is another model's: the names of the weights are not this one's"
    else:
        return
    raise CheckpointError(
        f'{file} cannot be resumed: {why}. To start a training from its weights, give it as '
        f'load_from, without resume: tools/train.py CONFIG --cfg-options load_from={file}'
    )
