"""Plan how a backbone is initialized from a file of any known layout, by ``init_cfg``."""

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.convert_on_load import (
    LOWER_BOUND,
    Note,
    Plan,
    convert,
    judge,
    unwrap,
)
from mmseg_m2f.adapters.checkpoints.resize_on_load import fit_windows, without_other_shapes
from mmseg_m2f.adapters.checkpoints.rules import LoadRules

# A classifier's file lacks the norms in front of our head and has a classifier instead.
_MAY_BE_MISSING = tuple(f'backbone.norm{i}.' for i in range(4))
_MAY_BE_LEFT_OVER = ('backbone.norm.', 'backbone.head.', 'backbone.fc.')
_OTHER_PARTS = ('neck.', 'criterion.', 'stem.fc.', 'pixel_mean', 'pixel_std')
# The official code's names without ``backbone.``, which mmseg's Swin and MMEngine's ``prefix``
# take off. No classifier's file has them.
_OFFICIAL_PARTS = ('stem.', 'res2.', 'norm0.', 'norm1.', 'norm2.', 'norm3.')


def plan_backbone(state: Mapping[str, Tensor], backbone: nn.Module, rules: LoadRules) -> Plan:
    """Plan the load of a file into a backbone.

    Args:
        state: the file's tensors: a backbone alone, or a whole model in any known layout.
        backbone: only its names and shapes matter; it is not changed.
        rules: what the load must fulfil.

    Returns:
        A plan whose weights have the backbone's own names.

    Raises:
        CheckpointError: A known layout cannot be converted.
    """
    expected = _under_backbone(backbone.state_dict())
    what = file_of(backbone)
    weights, notes = _own_part(what, state, expected)
    result = plan_named(what, weights, expected, rules)
    own = {key.removeprefix('backbone.'): value for key, value in result.weights.items()}
    return Plan(own, [*notes, *result.notes], result.problem)


def plan_named(
    what: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], rules: LoadRules
) -> Plan:
    """Plan the load of weights that are under our names already, as ``expected`` is.

    The norms of the outputs may be missing; a classifier's layers are left out. ``what`` names the
    file in messages.
    """
    fitted, warnings = fit_windows(expected, weights)
    wanted = {k: v for k, v in expected.items() if k in fitted or not k.startswith(_MAY_BE_MISSING)}
    used = {k: v for k, v in fitted.items() if k in expected or not k.startswith(_MAY_BE_LEFT_OVER)}
    changed = {key for key, value in used.items() if value is not weights.get(key)}
    fit, misfits = judge('backbone', wanted, used, changed, rules.min_matched)
    notes = [*(Note(text, logging.WARNING) for text in warnings), fit]
    problem = (
        f'{what} is not of this backbone (less than {rules.min_matched:.0%} match). {misfits}. '
        f'Take the file that belongs to the backbone. {LOWER_BOUND}'
    )
    return Plan(without_other_shapes(expected, used), notes, problem if misfits else None)


def file_of(backbone: nn.Module) -> str:
    """Return what messages call the file of the backbone's ``init_cfg``."""
    init_cfg = getattr(backbone, 'init_cfg', None)
    file = init_cfg.get('checkpoint') if isinstance(init_cfg, Mapping) else None
    return f'the file {file} of init_cfg' if file else 'the state dict'


def _own_part(
    what: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[Note]]:
    """Return the backbone's part of a file under our names; the names of others stay."""
    state, notes = unwrap(what, state)
    named = {key: value for key, value in state.items() if key.startswith('backbone.')}
    bare = {key: value for key, value in state.items() if not _is_other_part(key)}
    own = named or _under_backbone(bare)
    if 2 * sum(key in expected for key in own) > len(own):
        return own, notes
    is_cut = not named and any(key.startswith(_OFFICIAL_PARTS) for key in bare)
    try:
        _, weights, note = convert(what, own if is_cut else state, 'backbone')
    except checkpoints.UnknownLayoutError:
        return own, notes  # a user's own backbone, perhaps
    own = {key: value for key, value in weights.items() if key.startswith('backbone.')}
    return own, [*notes, note]


def _is_other_part(key: str) -> bool:
    return key.startswith(_OTHER_PARTS) or key.partition('.')[0].endswith('_head')


def _under_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f'backbone.{key}': value for key, value in weights.items()}
