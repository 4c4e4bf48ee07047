"""Our models take any known layout by whatever tool: hooks in front of ``load_state_dict``.

A model is known by its head. When one of ours becomes a model's child, the model gets a hook that
sees the backbone's weights as well; torch and MMEngine both call it. Its backbone gets one of its
own, for the file that initialises it. Models without our heads are never touched.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mmseg_m2f import checkpoints
from mmseg_m2f.adapters.checkpoints import backbone as backbone_init
from mmseg_m2f.adapters.checkpoints.convert_on_load import fit
from mmseg_m2f.adapters.models.head import MaskHead


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
        _add_once(backbone, backbone_init.before_loading)
        backbone_init.read_any_file(backbone)


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
