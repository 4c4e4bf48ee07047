"""Methods of a module that lead elsewhere, and the way back."""

from collections.abc import Callable
from typing import Any

from torch import nn

_MARK = '_accelerated_methods'


def replace_methods(module: nn.Module, **methods: Callable[..., Any]) -> None:
    """Let ``module.name(...)`` be ``methods[name]``, of this object alone.

    Bound methods of plain objects survive ``copy.deepcopy`` and ``torch.save`` with the module.
    """
    for name, method in methods.items():
        setattr(module, name, method)
    setattr(module, _MARK, [*getattr(module, _MARK, ()), *methods])


def is_accelerated(model: nn.Module) -> bool:
    """True if a method of the model or of a part of it has been replaced."""
    return any(_MARK in vars(module) for module in model.modules())


def restore(model: nn.Module) -> nn.Module:
    """The model with its own methods again; the weights are what they have become."""
    for module in model.modules():
        for name in vars(module).pop(_MARK, ()):
            del vars(module)[name]
    return model
