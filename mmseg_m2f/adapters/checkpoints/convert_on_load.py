"""Convert a checkpoint of any known layout for one of our models, and check that it fits."""

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.fit import State, fit
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
# Only a warning: a file that we exported in our own order has the same names as MMDetection's, and
# has to load as it was.
ORDER_OF_MMDET = (
    'the checkpoint keeps the order of its classes. MMDetection, whose layout it has, counts the '
    'things first, and this model does not. If MMDetection trained it, convert it once: '
    'tools/convert_checkpoint.py FILE ours.pth --config CONFIG --reorder official'
)

# A classifier's file lacks the norms in front of our head and has a classifier instead.
_OPTIONAL = tuple(f'backbone.norm{i}.' for i in range(4))
_SURPLUS = ('backbone.norm.', 'backbone.head.', 'backbone.fc.')
_OTHER_PARTS = ('neck.', 'criterion.', 'stem.fc.', 'pixel_mean', 'pixel_std')
# The official code's names without ``backbone.``, which mmseg's Swin and MMEngine's ``prefix``
# take off. No classifier's file has them.
_OFFICIAL_PARTS = ('stem.', 'res2.', 'norm0.', 'norm1.', 'norm2.', 'norm3.')


def weights_for(model: nn.Module, state: State, rules: LoadRules) -> dict[str, Tensor]:
    """Return a checkpoint's tensors, in any known layout, as a model with our head can load them.

    The log says what was recognized, changed and left over.

    Raises:
        CheckpointError: The layout is unknown, or cannot be converted, or the rules forbid it.
    """
    head, expected = head_name(model), model.state_dict()
    # The model's own names may begin like a wrapper's.
    if not _has_names_of(expected, state, head):
        state = unwrap('the checkpoint', state)
    if _has_names_of(expected, state, head):
        layout, weights = 'mmseg_m2f', dict(state)
    else:
        layout, weights = convert('the checkpoint', state, head)
    if rules.min_matched > 0 and not any(key.startswith(f'{head}.') for key in weights):
        raise CheckpointError(
            f'the checkpoint ({LAYOUT_NAMES[layout]}) has no head of a Mask2Former, only '
            f'{sorted({key.partition(".")[0] for key in weights})}. A backbone alone goes into '
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE), or is loaded with "
            '--min-matched 0 or load_rules(min_matched=0)'
        )
    if layout == 'mmdet' and not has_things_first(getattr(model, head)):
        print_log(ORDER_OF_MMDET, logger='current', level=logging.WARNING)
    mismatch = 'the checkpoint is of another architecture than the model'
    return fit('checkpoint', expected, weights, rules, mismatch)


def weights_for_backbone(backbone: nn.Module, state: State, rules: LoadRules) -> dict[str, Tensor]:
    """Return a file's tensors as the backbone can load them, under its own names.

    The file holds a backbone alone, or a whole model in any known layout.

    Raises:
        CheckpointError: A known layout cannot be converted, or too little fits.
    """
    expected = _under_backbone(backbone.state_dict())
    what = file_of(backbone)
    fitted = fit_backbone(what, expected, _own_part(what, state, expected), rules)
    return {key.removeprefix('backbone.'): value for key, value in fitted.items()}


def fit_backbone(what: str, expected: State, weights: State, rules: LoadRules) -> dict[str, Tensor]:
    """Fit the weights of a backbone, both sides with names like ``backbone.conv1``.

    The norms of the outputs may be missing; a classifier's layers are left out.
    """
    wanted = {k: v for k, v in expected.items() if k in weights or not k.startswith(_OPTIONAL)}
    used = {k: v for k, v in weights.items() if k in expected or not k.startswith(_SURPLUS)}
    return fit('backbone', wanted, used, rules, f'{what} is not of this backbone')


def file_of(backbone: nn.Module) -> str:
    """Return what messages call the file of the backbone's ``init_cfg``."""
    init_cfg = getattr(backbone, 'init_cfg', None)
    file = init_cfg.get('checkpoint') if isinstance(init_cfg, Mapping) else None
    return f'the file {file} of init_cfg' if file else 'the state dict'


def head_name(model: nn.Module) -> str:
    """Return the model's name for its head; raise ValueError if it has none of ours."""
    for name in checkpoints.HEADS:
        if isinstance(getattr(model, name, None), MaskHead):
            return name
    names = ' nor as '.join(checkpoints.HEADS)
    raise ValueError(f'{type(model).__name__} has no head of mmseg_m2f, neither as {names}')


def convert(
    what: str, state: State, part: str, source: str = 'auto'
) -> tuple[str, dict[str, Tensor]]:
    """Recognize the layout of ``state``, and return it with the tensors under our names.

    Messages call the checkpoint ``what``. ``part`` is the name of a head or ``backbone``;
    ``source`` is the layout that the tensors must have.

    Raises:
        CheckpointError: The names are of no layout or of another one, or cannot be converted.
    """
    head = part if part in checkpoints.HEADS else checkpoints.HEADS[0]
    try:
        layout = checkpoints.detect_layout(state)
        # An older file of timm has the names of torchvision's or Microsoft's.
        if source == 'timm' and layout in checkpoints.BACKBONE_LAYOUTS:
            layout = source
        if source not in ('auto', layout):
            raise ValueError(f'its names are those of {layout}, not of {source}')
        weights = checkpoints.to_ours(state, layout, head)
    except ValueError as error:
        raise CheckpointError(f'{what} cannot be converted: {error}') from error
    origin = LAYOUT_NAMES[layout]
    print_log(f'{what} has the layout of {origin}: converted for {part}', logger='current')
    return layout, weights


def unwrap(what: str, state: State) -> State:
    """Take a wrapper's prefix, such as DataParallel's ``module.``, off all names, and log it."""
    prefix, bare = checkpoints.without_wrapper(state)
    if prefix:
        print_log(f'all names of {what} begin with {prefix}, which was taken off', 'current')
    return bare


def check_resumable(model: nn.Module, checkpoint: Mapping[str, Any], file: str) -> None:
    """Check that ``checkpoint``, read from ``file``, was left by a run with such a model.

    Raises:
        CheckpointError: The state of a run is not there. Or a shape is not the model's. Or the
            names are not: then the optimizer's state counts the parameters in another order.
    """
    meta, expected = checkpoint.get('meta') or {}, model.state_dict()
    _, state = checkpoints.without_wrapper(checkpoint.get('state_dict', {}))
    own = {key: value for key, value in state.items() if key in expected}
    others = [key for key, value in own.items() if value.shape != expected[key].shape]
    is_ours = any(isinstance(getattr(model, name, None), MaskHead) for name in checkpoints.HEADS)
    if 'message_hub' not in checkpoint or not {'epoch', 'iter'} <= meta.keys():
        why = 'it has no optimizer state and no iteration of a training with MMEngine'
    elif is_ours and not _has_names_of(expected, state, head_name(model)):
        why = 'its optimizer state belongs to another model: the names of the weights differ'
    elif others:
        shapes = [tuple(tensors[others[0]].shape) for tensors in (own, expected)]
        why = (
            f'its optimizer state belongs to another model: {others[0]} has the shape {shapes[0]}, '
            f'in the model {shapes[1]} (another number of classes or queries?)'
        )
    else:
        return
    raise CheckpointError(
        f'{file} cannot be resumed: {why}. To start a training from its weights, give it as '
        f'load_from, without resume: tools/train.py CONFIG --cfg-options load_from={file}'
    )


def _has_names_of(expected: State, state: State, head: str) -> bool:
    """Return True if most names of ``state`` are the model's: nothing is to be converted.

    Only the head's names count if there is a head, because backbones agree in several layouts.
    Most are enough, because parts of a user's own have names that no layout knows.
    """
    names = [key for key in state if key.startswith(f'{head}.')]
    if not names and not any(key.partition('.')[0] in checkpoints.HEADS for key in state):
        names = list(state)
    return 2 * sum(key in expected for key in names) > len(names)


def _own_part(what: str, state: State, expected: State) -> State:
    """Return the backbone's part of a file under our names; the names of others stay."""
    state = unwrap(what, state)
    named = {key: value for key, value in state.items() if key.startswith('backbone.')}
    bare = {
        key: value
        for key, value in state.items()
        if not key.startswith(_OTHER_PARTS) and not key.partition('.')[0].endswith('_head')
    }
    own = named or _under_backbone(bare)
    if 2 * sum(key in expected for key in own) > len(own):
        return own
    if not named and any(key.startswith(_OFFICIAL_PARTS) for key in bare):
        state = own
    try:
        _, weights = convert(what, state, 'backbone')
    except CheckpointError as error:
        if isinstance(error.__cause__, checkpoints.UnknownLayoutError):
            return own  # a user's own backbone, perhaps
        raise
    return {key: value for key, value in weights.items() if key.startswith('backbone.')}


def _under_backbone(weights: State) -> dict[str, Tensor]:
    return {f'backbone.{key}': value for key, value in weights.items()}
