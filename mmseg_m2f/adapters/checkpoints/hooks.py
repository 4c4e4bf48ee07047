"""Hooks that let our models load any known layout, with whatever tool calls ``load_state_dict``.

A model is known by its head. When one of our heads becomes a model's child, the model gets a hook
that converts the weights; torch and MMEngine both call it. The backbone gets a hook of its own, for
the file of its ``init_cfg``. Models without our heads are never touched.
"""

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mmseg_m2f.adapters.checkpoints import convert_on_load
from mmseg_m2f.adapters.checkpoints.formats import is_weights, weights_of
from mmseg_m2f.adapters.checkpoints.rules import CURRENT_RULES
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.checkpoints import HEADS


def watch_for_heads() -> None:
    """Give the hooks to every model that gets one of our heads from now on."""
    if _add_hooks not in torch_module._global_module_registration_hooks.values():
        torch_module.register_module_module_registration_hook(_add_hooks)


def _add_hooks(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if name not in HEADS or not isinstance(child, MaskHead):
        return
    _add_once(parent, _before_model_loads)
    if isinstance(backbone := parent._modules.get('backbone'), nn.Module):
        _add_once(backbone, _before_backbone_loads)
        _let_mmengine_read(backbone)


def _add_once(module: nn.Module, hook: Callable[..., None]) -> None:
    # A model's head may be replaced by another one.
    known = module._load_state_dict_pre_hooks.values()
    if not any(getattr(other, 'hook', None) is hook for other in known):
        module.register_load_state_dict_pre_hook(hook)


def _before_model_loads(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    names = [key for key in state_dict if key.startswith(prefix)]
    if not names:
        return
    state = _weights('the checkpoint', {key.removeprefix(prefix): state_dict[key] for key in names})
    weights = convert_on_load.weights_for(model, state, CURRENT_RULES.get())
    for key in names:
        del state_dict[key]
    state_dict.update({prefix + key: value for key, value in weights.items()})


def _before_backbone_loads(
    backbone: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    # With a prefix it loads as part of a model, whose hook has done everything.
    if prefix or not state_dict:
        return
    state = _weights(convert_on_load.file_of(backbone), state_dict)
    weights = convert_on_load.weights_for_backbone(backbone, state, CURRENT_RULES.get())
    state_dict.clear()
    state_dict.update(weights)


def _weights(what: str, content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the tensors of a state dict; MMEngine gives a file without ``state_dict`` whole."""
    has_tensors = any(isinstance(value, Tensor) for value in content.values())
    if has_tensors and not is_weights(content.get('model')):
        return content
    return weights_of(content, what)


def _let_mmengine_read(backbone: Any) -> None:
    """Let MMEngine read the file of mmdet's Swin, as it does for every other backbone.

    mmdet's Swin reads its file itself. It takes OpenMMLab's names, or Microsoft's with
    ``convert_weights``, and fails at all others before a hook sees them.
    """
    method = getattr(type(backbone), 'init_weights', None)
    is_swin = getattr(method, '__qualname__', '') == 'SwinTransformer.init_weights'
    init_cfg = getattr(backbone, 'init_cfg', None)
    has_file = isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained'
    # We cannot convert absolute positions; mmdet reads those itself.
    has_positions = getattr(backbone, 'use_abs_pos_embed', False)
    if is_swin and has_file and hasattr(backbone, 'convert_weights') and not has_positions:
        # A bound method, not a closure: a deep copy of the model gets its own.
        backbone.init_weights = MethodType(BaseModule.init_weights, backbone)
