"""Any known layout made ready for one of our models: renamed, fitted, counted, checked."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters import load_report
from mmseg_m2f.adapters.checkpoint_io import CheckpointError
from mmseg_m2f.adapters.heads import MaskHead

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
_FIX = (
    'Take the config that belongs to the checkpoint. If the difference is meant, lower the bound: '
    '--min-matched of our tools, or mmseg_m2f.adapters.loading.load_rules(min_matched=...)'
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
        others = sorted({key.partition('.')[0] for key in weights} - {'backbone'})
        if others:
            raise CheckpointError(
                f'the checkpoint has no head of a Mask2Former, the model has {head}: beside the '
                f'backbone it holds {others}. Take a checkpoint of a Mask2Former'
            )
        raise CheckpointError(
            f'the checkpoint holds a backbone only ({LAYOUT_NAMES[layout]}), the model has a head '
            'as well. To start a training from it, set model.backbone.init_cfg='
            "dict(type='Pretrained', checkpoint=FILE, prefix='backbone.') with what "
            'tools/convert_checkpoint.py makes of it; to load it as a part, set the least share '
            'to 0: load_rules(min_matched=0), --min-matched 0'
        )
    weights, reshaped = _with_rows_of(expected, weights, head)
    check(expected, weights, reshaped)
    # Only where a lowered bound lets them pass: torch refuses what has another shape.
    return {
        key: value
        for key, value in weights.items()
        if key not in expected or value.shape == expected[key].shape
    }


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


def _with_rows_of(
    model: Mapping[str, Tensor], weights: dict[str, Tensor], head: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights for the model's numbers of queries and classes, and the names of what changed.

    The same on every process, whatever its random numbers: they load each for themselves.
    """
    fitted = weights
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
            if what == 'classes':
                _allow_other_classes(given, wanted)
            fitted = resize(fitted, wanted)
            done = 'it takes the first' if given > wanted else 'noisy copies fill it up'
            print_log(
                f'the checkpoint has {given} {what}, the model {wanted}: {done}',
                logger='current',
                level=logging.WARNING,
            )
    fitted = _with_windows_of(model, fitted)
    return fitted, [key for key in fitted if fitted[key] is not weights[key]]


def _with_windows_of(model: Mapping[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swin's position biases for the model's windows; the index belongs to the window."""
    resized = {
        key: checkpoints.resize_window(table, len(model[key]))
        for key, table in weights.items()
        if key.endswith('.relative_position_bias_table')
        and key in model
        and len(model[key]) != len(table)
        and model[key].shape[1:] == table.shape[1:]
    }
    if not resized:
        return weights
    print_log(
        'the checkpoint has other windows in its Swin than the model: the relative position biases '
        'were resized, and the predictions are not those of the checkpoint any more',
        logger='current',
        level=logging.WARNING,
    )
    indices = [key.replace('bias_table', 'index') for key in resized]
    return {**weights, **resized, **{key: model[key] for key in indices if key in model}}


def _allow_other_classes(given: int, wanted: int) -> None:
    if not _RULES.get().other_classes:
        raise CheckpointError(
            f'the checkpoint has {given} classes, the model {wanted}, so its predictions would '
            'mean nothing: take the config of the data set it was trained on, or train on from '
            f'it (load_from of tools/train.py) for {wanted} classes'
        )


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
        # What is missing stays as it was drawn.
        level=logging.WARNING if any(match.missing for match in matches) else logging.INFO,
    )
    min_matched = _RULES.get().min_matched
    wrong = load_report.misfits(matches, min_matched)
    if wrong:
        described = '. '.join(load_report.description(match, model, weights) for match in wrong)
        raise CheckpointError(
            f'the checkpoint is of another architecture than the model (less than '
            f'{min_matched:.0%} match). {described}. {_FIX}.'
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
