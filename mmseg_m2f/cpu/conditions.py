"""Conditions for a faster forward, which does not call the modules inside a part."""

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mmseg_m2f.cpu import onednn

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def may_run(module: nn.Module, x: Tensor, inner: Collection[type]) -> bool:
    """Return True if oneDNN can take ``x`` and the weights, and no module inside must be called.

    The modules inside must be exactly of the classes ``inner``, without hooks and without a
    ``forward`` of their own: a replaced layer, a quantized one or an adapter must be called.
    """
    if onednn.objection(x, *module.parameters()) is not None:
        return False
    _, *inside = module.modules()
    return all(type(part) in inner and not has_custom_call(part) for part in inside)


def has_custom_call(module: nn.Module) -> bool:
    """Return True if a call of the module runs hooks or another ``forward`` than its class's."""
    has_hooks = any(vars(module).get(kind) for kind in _HOOKS) or _has_any_global_hook()
    return bool(has_hooks or 'forward' in vars(module))
