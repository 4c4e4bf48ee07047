"""Convert a file of any known layout for the backbone that ``init_cfg`` initializes from it."""

from collections.abc import Mapping

from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints.convert_on_load import LOWER_BOUND, convert, log_fit, unwrap
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.resize_on_load import fit_windows, without_other_shapes
from mmseg_m2f.adapters.checkpoints.rules import LoadRules

# A classifier's file lacks the norms in front of our head and has a classifier instead.
_MAY_BE_MISSING = tuple(f'backbone.norm{i}.' for i in range(4))
_MAY_BE_LEFT_OVER = ('backbone.norm.', 'backbone.head.', 'backbone.fc.')
_OTHER_PARTS = ('neck.', 'criterion.', 'stem.fc.', 'pixel_mean', 'pixel_std')
# The official code's names without ``backbone.``, which mmseg's Swin and MMEngine's ``prefix``
# take off. No classifier's file has them.
_OFFICIAL_PARTS = ('stem.', 'res2.', 'norm0.', 'norm1.', 'norm2.', 'norm3.')


def weights_for_backbone(
    backbone: nn.Module, state: Mapping[str, Tensor], rules: LoadRules
) -> dict[str, Tensor]:
    """Return a file's tensors as the backbone can load them, under its own names.

    Args:
        backbone: only its names and shapes matter; it is not changed.
        state: the file's tensors: a backbone alone, or a whole model in any known layout.
        rules: what the load must fulfill.

    Raises:
        CheckpointError: A known layout cannot be converted, or too little fits.
    """
    expected = _under_backbone(backbone.state_dict())
    what = file_of(backbone)
    fitted = fitted_backbone(what, expected, _own_part(what, state, expected), rules)
    return {key.removeprefix('backbone.'): value for key, value in fitted.items()}


def fitted_backbone(
    what: str, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], rules: LoadRules
) -> dict[str, Tensor]:
    """Resize and check the weights of a backbone, both sides with names like ``backbone.conv1``.

    The norms of the outputs may be missing; a classifier's layers are left out. ``what`` names the
    file in messages.

    Raises:
        CheckpointError: Too little fits.
    """
    fitted = fit_windows(expected, weights)
    wanted = {k: v for k, v in expected.items() if k in fitted or not k.startswith(_MAY_BE_MISSING)}
    used = {k: v for k, v in fitted.items() if k in expected or not k.startswith(_MAY_BE_LEFT_OVER)}
    if misfits := log_fit('backbone', wanted, used, weights, rules.min_matched):
        raise CheckpointError(
            f'{what} is not of this backbone (less than {rules.min_matched:.0%} match). {misfits}. '
            f'Take the file that belongs to the backbone. {LOWER_BOUND}'
        )
    return without_other_shapes(expected, used)


def file_of(backbone: nn.Module) -> str:
    """Return what messages call the file of the backbone's ``init_cfg``."""
    init_cfg = getattr(backbone, 'init_cfg', None)
    file = init_cfg.get('checkpoint') if isinstance(init_cfg, Mapping) else None
    return f'the file {file} of init_cfg' if file else 'the state dict'


def _own_part(
    what: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the backbone's part of a file under our names; the names of others stay."""
    state = unwrap(what, state)
    named = {key: value for key, value in state.items() if key.startswith('backbone.')}
    bare = {key: value for key, value in state.items() if not _is_other_part(key)}
    own = named or _under_backbone(bare)
    if 2 * sum(key in expected for key in own) > len(own):
        return own
    is_cut = not named and any(key.startswith(_OFFICIAL_PARTS) for key in bare)
    try:
        _, weights = convert(what, own if is_cut else state, 'backbone')
    except checkpoints.UnknownLayoutError:
        return own  # a user's own backbone, perhaps
    return {key: value for key, value in weights.items() if key.startswith('backbone.')}


def _is_other_part(key: str) -> bool:
    return key.startswith(_OTHER_PARTS) or key.partition('.')[0].endswith('_head')


def _under_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f'backbone.{key}': value for key, value in weights.items()}
