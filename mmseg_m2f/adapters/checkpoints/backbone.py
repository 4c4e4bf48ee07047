"""A backbone's weights out of a file of any known layout: of a backbone alone, or of a model."""

import re
from collections.abc import Mapping
from types import MethodType
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints import report as load_report
from mmseg_m2f.adapters.checkpoints.convert_on_load import LOWER_BOUND, converted, current_rules
from mmseg_m2f.adapters.checkpoints.loader import CheckpointError
from mmseg_m2f.adapters.checkpoints.resize_on_load import with_windows_of, without_other_shapes

# A classifier's file lacks the norms in front of our head, and has a classifier instead.
_MAY_BE_MISSING = re.compile(r'backbone\.norm[0-3]\.')
_MAY_BE_LEFT = re.compile(r'backbone\.(norm|head|fc)\.')
_OF_OTHER_PARTS = re.compile(r'\w+_head\.|neck\.|criterion\.|stem\.fc\.|pixel_(mean|std)$')
# A backbone's names in the official code without ``backbone.`` in front, which mmseg's Swin and
# MMEngine's ``prefix`` take off. A classifier has none of them.
_WITHOUT_FIRST_NAME = re.compile(r'(stem|res2|norm[0-3])\.')


def before_loading(
    backbone: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """A hook for ``init_cfg``; as part of a model (with a prefix) the weights were fitted before.

    Raises:
        CheckpointError: a known layout cannot be converted, or too little fits.
    """
    if prefix or not state_dict:
        return
    expected = _under('backbone', backbone.state_dict())
    weights = fit_backbone('the file of init_cfg', expected, _own(expected, state_dict))
    state_dict.clear()
    state_dict.update({key.removeprefix('backbone.'): weights[key] for key in weights})


def fit_backbone(
    what: str, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Logs how ``weights`` fit; they come back for the model's windows, both under our names.

    The norms of the outputs may be missing; a classifier's parts are left out.

    Raises:
        CheckpointError: less than ``min_matched`` of the `LoadRules` fits; begins with ``what``.
    """
    fitted = with_windows_of(expected, weights)
    wanted = {k: v for k, v in expected.items() if k in fitted or not _MAY_BE_MISSING.match(k)}
    used = {k: v for k, v in fitted.items() if k in expected or not _MAY_BE_LEFT.match(k)}
    reshaped = [key for key in used if used[key] is not weights.get(key)]
    matches = load_report.compare(wanted, used, reshaped)
    print_log(
        f'loading the backbone: {load_report.table(matches)}',
        logger='current',
        level=load_report.level(matches),
    )
    least = current_rules().min_matched
    if wrong := load_report.misfits(matches, least):
        raise CheckpointError(
            f'{what} is not of this backbone (less than {least:.0%} match). '
            f'{load_report.description(wrong[0], wanted, used)}. Take the file '
            f'that belongs to the backbone. {LOWER_BOUND}'
        )
    return without_other_shapes(expected, used)


def _own(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the file has of a backbone, under our names."""
    named = {key: value for key, value in stored.items() if key.startswith('backbone.')}
    bare = {key: value for key, value in stored.items() if not _OF_OTHER_PARTS.match(key)}
    own = named or _under('backbone', bare)
    if 2 * sum(key in expected for key in own) > len(own):
        return own
    is_cut = not named and any(_WITHOUT_FIRST_NAME.match(key) for key in bare)
    try:
        _, weights = converted('the file of init_cfg', own if is_cut else stored, 'backbone')
    except checkpoints.UnknownLayoutError:
        return own  # of a user's own, perhaps
    return {key: value for key, value in weights.items() if key.startswith('backbone.')}


def _under(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f'{name}.{key}': value for key, value in weights.items()}


def read_any_file(backbone: Any) -> None:
    """Makes mmdet's Swin read its file by `before_loading`; other backbones do so already.

    Its own ``init_weights`` takes OpenMMLab's names, or Microsoft's with ``convert_weights``, and
    fails at all others before a hook sees them.
    """
    method = getattr(type(backbone), 'init_weights', None)
    is_swin = getattr(method, '__qualname__', '') == 'SwinTransformer.init_weights'
    has_positions = getattr(backbone, 'use_abs_pos_embed', False)  # which we cannot convert
    if is_swin and hasattr(backbone, 'convert_weights') and not has_positions:
        # A bound method, not a closure: copies of the model take it along for themselves.
        backbone.init_weights = MethodType(init_weights, backbone)


def init_weights(backbone: Any) -> None:
    """In the place of the method of that name in mmdet's Swin.

    Raises:
        CheckpointError: the file holds no weights, or not those of this backbone.
    """
    settings = backbone.init_cfg
    if not isinstance(settings, Mapping) or 'checkpoint' not in settings:
        type(backbone).init_weights(backbone)
        return
    file = settings['checkpoint']
    content = CheckpointLoader.load_checkpoint(file, map_location='cpu')
    weights = content.get('state_dict') if isinstance(content, Mapping) else None
    if not weights:
        raise CheckpointError(f'{file} holds no weights: neither state_dict nor model')
    bare = {key.removeprefix('module.'): value for key, value in weights.items()}
    backbone.load_state_dict(bare, strict=False)
