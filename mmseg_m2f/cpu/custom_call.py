"""Whether a module does exactly what its class says."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def has_custom_call(module: nn.Module) -> bool:
    """Tell whether calling the module runs hooks or a ``forward`` that is not its class's own."""
    has_hooks = any(vars(module).get(kind) for kind in _HOOKS) or _has_any_global_hook()
    return bool(has_hooks or 'forward' in vars(module))
