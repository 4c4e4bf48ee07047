"""Our models take any known layout by whatever tool: hooks in front of ``load_state_dict``.

A model is known by its head. When one of ours becomes a model's child, the model gets a hook that
sees the backbone's weights as well; torch and MMEngine both call it. Its backbone gets one of its
own, for the file that initialises it. Models without our heads are never touched.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters import load_report
from mmseg_m2f.adapters.checkpoint_io import CheckpointError
from mmseg_m2f.adapters.heads import MaskHead
from mmseg_m2f.adapters.loading import converted, current_rules, fit

# A classifier's file lacks the norms in front of our head, and has a classifier instead.
_LEAST_OF_A_BACKBONE = 0.5


def watch_for_heads() -> None:
    """From now on every model that gets one of our heads gets the hook; may be called again."""
    hooks = torch_module._global_module_registration_hooks
    if _add_hook not in hooks.values():
        torch_module.register_module_module_registration_hook(_add_hook)


def _add_hook(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if name not in checkpoints.HEADS or not isinstance(child, MaskHead):
        return
    _add_once(parent, _before_loading)
    if isinstance(backbone := parent._modules.get('backbone'), nn.Module):
        _add_once(backbone, _before_loading_backbone)


def _add_once(module: nn.Module, hook: Callable[..., None]) -> None:
    # A head may be replaced: by its copy with other norms, for instance.
    known = module._load_state_dict_pre_hooks.values()
    if not any(getattr(other, 'hook', None) is hook for other in known):
        module.register_load_state_dict_pre_hook(hook)


def _before_loading(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    stored = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    if not stored:
        return
    fitted = fit(model, stored)
    for key in stored:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in fitted.items()})


def _before_loading_backbone(
    backbone: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """For ``init_cfg``; as part of a model (with a prefix) the weights have been fitted already.

    Raises:
        CheckpointError: a known layout cannot be converted, or next to nothing fits.
    """
    if prefix or not state_dict:
        return
    expected = _under('backbone', backbone.state_dict())
    weights = _under('backbone', state_dict)
    if 2 * sum(key in expected for key in weights) <= len(weights):
        weights = _backbone_of(state_dict)
    matches = load_report.compare(expected, weights)
    print_log(f'initialising the backbone: {load_report.table(matches)}', logger='current')
    least = min(current_rules().min_matched, _LEAST_OF_A_BACKBONE)
    if wrong := load_report.misfits(matches, least):
        raise CheckpointError(
            'the file of init_cfg is not of this backbone. '
            f'{load_report.description(wrong[0], expected, weights)}. Take the file that belongs '
            'to the backbone, or what tools/convert_checkpoint.py makes of it'
        )
    state_dict.clear()
    state_dict.update({key.removeprefix('backbone.'): weights[key] for key in weights})


def _backbone_of(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        _, weights = converted('the file of init_cfg', stored, 'backbone')
    except checkpoints.UnknownLayoutError:
        return _under('backbone', stored)  # of a user's own, perhaps
    return {key: weights[key] for key in weights if key.startswith('backbone.')}


def _under(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f'{name}.{key}': value for key, value in weights.items()}
