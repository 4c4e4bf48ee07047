"""Convert a checkpoint of any known layout for one of our models, and check that it fits."""

import logging
from collections.abc import Mapping
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


def weights_for(
    model: nn.Module, state: Mapping[str, Tensor], rules: LoadRules
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors as a model with one of our heads can load them.

    The log says what was recognized, changed and left over.

    Args:
        model: only its names and shapes matter; it is not changed.
        state: the checkpoint's tensors, in any known layout.
        rules: what the load must fulfill.

    Returns:
        Tensors that have the model's shapes, or names that the model does not have.

    Raises:
        CheckpointError: The layout is not known or cannot be converted, or the rules forbid the
            load.
        ValueError: The model has none of our heads.
    """
    head, expected = head_name(model), model.state_dict()
    layout, weights = _renamed(state, expected, head)
    has_head = any(key.startswith(f'{head}.') for key in weights)
    if not has_head and rules.min_matched > 0:
        raise CheckpointError(_without_head(weights, layout, head))
    resized = fit_queries_and_classes(expected, weights, head, rules.other_classes)
    resized = fit_windows(expected, resized)
    misfits = log_fit('checkpoint', expected, resized, weights, rules.min_matched)
    if layout == 'mmdet' and not has_things_first(getattr(model, head)):
        print_log(f'the checkpoint {ORDER_OF_MMDET}', logger='current', level=logging.WARNING)
    if misfits:
        raise CheckpointError(
            f'the checkpoint is of another architecture than the model (less than '
            f'{rules.min_matched:.0%} match). {misfits}. Take the config that belongs to the '
            f'checkpoint. {LOWER_BOUND}'
        )
    return without_other_shapes(expected, resized)


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


def convert(what: str, state: Mapping[str, Tensor], part: str) -> tuple[str, dict[str, Tensor]]:
    """Recognize the layout of ``state``, and return it with the tensors under our names.

    ``what`` names the checkpoint in messages; ``part`` is a head's name or ``backbone``.

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
    text = f'{what} has the layout of {LAYOUT_NAMES[layout]}: converted for {part}'
    print_log(text, logger='current')
    return layout, weights


def unwrap(what: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take a wrapper's prefix, such as DataParallel's ``module.``, off all names, and log it."""
    prefix, bare = checkpoints.without_wrapper(state)
    if prefix:
        text = f'all names of {what} begin with {prefix}, which was taken off'
        print_log(text, logger='current')
    return bare


def _renamed(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str
) -> tuple[str, dict[str, Tensor]]:
    # The model's own names may begin like a wrapper's.
    if has_names_of(expected, state, head):
        return 'mmseg_m2f', dict(state)
    state = unwrap('the checkpoint', state)
    if has_names_of(expected, state, head):
        return 'mmseg_m2f', dict(state)
    try:
        return convert('the checkpoint', state, head)
    except checkpoints.UnknownLayoutError as error:
        raise CheckpointError(f'this is no checkpoint of a Mask2Former: {error}') from error


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


def log_fit(
    what: str,
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    min_matched: float,
) -> str:
    """Log how weights fit, and describe the modules that do not have ``min_matched``.

    ``what`` is loaded; ``given`` are the weights before any was resized.
    """
    changed = {key for key, value in weights.items() if value is not given.get(key)}
    matches = report.compare(expected, weights, changed)
    keeps_random = any(match.missing for match in matches)
    level = logging.WARNING if keeps_random else logging.INFO
    print_log(f'loading the {what}: {report.table(matches)}', logger='current', level=level)
    misfits = [match for match in matches if match.num_expected and match.share < min_matched]
    return '. '.join(map(str, misfits))


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
