"""Plan how a checkpoint of any known layout is loaded into one of our models."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints import report
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.resize_on_load import (
    fit_queries_and_classes,
    fit_windows,
    without_other_shapes,
)
from mmseg_m2f.adapters.checkpoints.rules import LoadRules
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
    'mmseg_m2f.adapters.checkpoints.rules.load_rules(min_matched=...)'
)
# Only a warning: a file that we exported in our own order has the same names as MMDetection's, and
# has to load as it was.
ORDER_OF_MMDET = (
    'has the layout of MMDetection, whose heads count the things first. The thing_ids of this '
    'model are mixed with its stuff, and the classes are taken in the order they have. If '
    'MMDetection trained the model, its classes now have wrong names: convert the file once with '
    'tools/convert_checkpoint.py FILE ours.pth --config CONFIG --reorder official'
)


@dataclass(frozen=True)
class Note:
    """A line for the log."""

    text: str
    level: int = logging.INFO


@dataclass(frozen=True)
class Plan:
    """The outcome of a load, worked out before it: making a plan changes and logs nothing.

    Args:
        weights: tensors under the model's names. Each has the model's shape, or a name that the
            model does not have.
        notes: what was recognized, changed and left over.
        problem: Why the weights must not be loaded; None if they may.
    """

    weights: dict[str, Tensor]
    notes: list[Note] = field(default_factory=list)
    problem: str | None = None

    def apply(self) -> dict[str, Tensor]:
        """Log the notes and return the weights to load.

        Raises:
            CheckpointError: There is a problem.
        """
        for note in self.notes:
            print_log(note.text, logger='current', level=note.level)
        if self.problem:
            raise CheckpointError(self.problem)
        return self.weights


def plan(state: Mapping[str, Tensor], model: nn.Module, rules: LoadRules) -> Plan:
    """Plan the load of a checkpoint into a model with one of our heads.

    Args:
        state: the checkpoint's tensors, in any known layout.
        model: only its names and shapes matter; it is not changed.
        rules: what the load must fulfil.

    Raises:
        CheckpointError: The layout is not known or cannot be converted, or the number of classes
            differs where the rules forbid it.
        ValueError: The model has none of our heads.
    """
    head, expected = head_name(model), model.state_dict()
    layout, weights, notes = _renamed(state, expected, head)
    has_head = any(key.startswith(f'{head}.') for key in weights)
    if not has_head and rules.min_matched > 0:
        return Plan({}, notes, _without_head(weights, layout, head))
    rows = fit_queries_and_classes(expected, weights, head, rules.other_classes)
    windows = fit_windows(expected, rows.weights)
    notes += [Note(text, logging.WARNING) for text in (*rows.warnings, *windows.warnings)]
    changed = {key for key, value in windows.weights.items() if value is not weights.get(key)}
    fit, misfits = judge('checkpoint', expected, windows.weights, changed, rules.min_matched)
    notes.append(fit)
    if layout == 'mmdet' and not has_things_first(getattr(model, head)):
        notes.append(Note(f'the checkpoint {ORDER_OF_MMDET}', logging.WARNING))
    problem = (
        f'the checkpoint is of another architecture than the model (less than '
        f'{rules.min_matched:.0%} match). {misfits}. Take the config that belongs to the '
        f'checkpoint. {LOWER_BOUND}'
    )
    weights = without_other_shapes(expected, windows.weights)
    return Plan(weights, notes, problem if misfits else None)


def head_name(model: nn.Module) -> str:
    """Return the model's name for its head.

    Raises:
        ValueError: None of its children is one of our heads.
    """
    name = _find_head(model)
    if name is None:
        raise ValueError(
            f'{type(model).__name__} has no head of mmseg_m2f, neither as '
            f'{" nor as ".join(checkpoints.HEADS)}'
        )
    return name


def _find_head(model: nn.Module) -> str | None:
    names = (name for name in checkpoints.HEADS if isinstance(getattr(model, name, None), MaskHead))
    return next(names, None)


def convert(
    what: str, state: Mapping[str, Tensor], part: str
) -> tuple[str, dict[str, Tensor], Note]:
    """Recognize the layout of ``state`` and rename its tensors to ours.

    ``what`` names the checkpoint in messages; ``part`` is a head's name or ``backbone``.

    Returns:
        The layout, the weights under our names, and a line that says so.

    Raises:
        UnknownLayoutError: No layout has these names.
        CheckpointError: A known layout has these names, but they cannot be converted.
    """
    head = part if part in checkpoints.HEADS else checkpoints.HEADS[0]
    try:
        layout = checkpoints.detect_layout(state)
        weights = checkpoints.to_ours(state, layout, head)
    except checkpoints.UnknownLayoutError:
        raise
    except ValueError as error:
        raise CheckpointError(f'{what} cannot be converted: {error}') from error
    note = Note(f'{what} has the layout of {LAYOUT_NAMES[layout]}: converted for {part}')
    return layout, weights, note


def unwrap(what: str, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[Note]]:
    """Take a wrapper's prefix, such as DataParallel's ``module.``, off all names, with a note."""
    prefix, bare = checkpoints.without_wrapper(state)
    if not prefix:
        return state, []
    return bare, [Note(f'all names of {what} begin with {prefix}, which was taken off')]


def _renamed(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str
) -> tuple[str, dict[str, Tensor], list[Note]]:
    if has_names_of(expected, state, head):
        return 'mmseg_m2f', dict(state), []
    state, notes = unwrap('the checkpoint', state)
    if notes and has_names_of(expected, state, head):
        return 'mmseg_m2f', dict(state), notes
    try:
        layout, weights, note = convert('the checkpoint', state, head)
    except checkpoints.UnknownLayoutError as error:
        raise CheckpointError(f'this is no checkpoint of a Mask2Former: {error}') from error
    return layout, weights, [*notes, note]


def has_names_of(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], head: str) -> bool:
    """Return True if most names of ``state`` are the model's: nothing is to be converted.

    Only the head's names count if there is a head, because backbones agree in several layouts.
    Most are enough, because parts of a user's own have names that no layout knows.
    """
    names = [key for key in state if key.startswith(f'{head}.')]
    heads = tuple(f'{name}.' for name in checkpoints.HEADS)
    if not names and not any(key.startswith(heads) for key in state):
        names = list(state)
    return 2 * sum(key in expected for key in names) > len(names)


def _without_head(weights: Mapping[str, Tensor], layout: str, head: str) -> str:
    others = sorted({key.partition('.')[0] for key in weights} - {'backbone'})
    if others:
        return (
            f'the checkpoint has no head of a Mask2Former, the model has {head}. Beside the '
            f'backbone it holds {others}. Take a checkpoint of a Mask2Former'
        )
    return (
        f'the checkpoint holds a backbone only ({LAYOUT_NAMES[layout]}), the model has a head '
        'as well. To start a training from it, set model.backbone.init_cfg='
        "dict(type='Pretrained', checkpoint=FILE), which takes the file as it is. To load the "
        'backbone alone, set the bound to 0: load_rules(min_matched=0), --min-matched 0'
    )


def judge(
    what: str,
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    changed: Collection[str],
    min_matched: float,
) -> tuple[Note, str]:
    """Describe how weights fit, as a table for the log, and the modules that do not fit.

    ``what`` is loaded; ``changed`` are the names that were resized. The second is empty if each
    module has at least ``min_matched``.
    """
    matches = report.compare(expected, weights, changed)
    wrong = report.misfits(matches, min_matched)
    note = Note(f'loading the {what}: {report.table(matches)}', report.level(matches))
    return note, '. '.join(report.description(match, expected, weights) for match in wrong)


def check_resumable(model: nn.Module, checkpoint: Mapping[str, Any], file: str) -> None:
    """Check that ``checkpoint``, read from ``file``, was left by a run with such a model.

    Raises:
        CheckpointError: The state of a run is not there. Or the names are not the model's: then
            the optimizer's state counts the parameters in another order.
    """
    meta = checkpoint.get('meta') or {}
    _, state = checkpoints.without_wrapper(checkpoint.get('state_dict', {}))
    head = _find_head(model)
    if 'message_hub' not in checkpoint or not {'epoch', 'iter'} <= meta.keys():
        why = 'it has no optimizer state and no iteration of a training with MMEngine'
    elif head and not has_names_of(model.state_dict(), state, head):
        why = 'its optimizer state belongs to another model: the names of the weights differ'
    else:
        return
    raise CheckpointError(
        f'{file} cannot be resumed: {why}. To start a training from its weights, give it as '
        f'load_from, without resume: tools/train.py CONFIG --cfg-options load_from={file}'
    )
