"""Replace methods of a single module, and take them back."""

from collections.abc import Callable
from typing import Any

from torch import nn

_MARK = '_accelerated_methods'


class CannotAccelerateError(ValueError):
    """A model cannot be accelerated; the message names the part and the reason."""


def replace_methods(module: nn.Module, **methods: Callable[..., Any]) -> None:
    """Set ``methods`` on this module object; its class and other objects keep theirs.

    A bound method of a plain object survives ``copy.deepcopy`` and ``torch.save`` of the module.
    """
    for name, method in methods.items():
        setattr(module, name, method)
    setattr(module, _MARK, {**vars(module).get(_MARK, {}), **methods})


def is_accelerated(model: nn.Module) -> bool:
    """Return True if a method of the model or of a part of it has been replaced."""
    return any(_MARK in vars(module) for module in model.modules())


def restore(model: nn.Module) -> nn.Module:
    """Give an accelerated model its own methods back; the weights stay as they are now.

    Raises:
        ValueError: a method has been replaced again since; the model is left as it was.
    """
    marked = [module for module in model.modules() if _MARK in vars(module)]
    for module in marked:
        for name, method in vars(module)[_MARK].items():
            if vars(module).get(name) != method:
                raise ValueError(
                    f'restore: {name} of {type(module).__name__} is not what accelerate put there: '
                    'undo first what has replaced it since (prepare_inference with a dtype does), '
                    'or build the model anew'
                )
    for module in marked:
        for name in vars(module).pop(_MARK):
            delattr(module, name)
    return model
