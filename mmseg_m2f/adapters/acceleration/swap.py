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
    setattr(module, _MARK, {**getattr(module, _MARK, {}), **methods})


def is_accelerated(model: nn.Module) -> bool:
    """True if a method of the model or of a part of it has been replaced."""
    return any(_MARK in vars(module) for module in model.modules())


def restore(model: nn.Module) -> nn.Module:
    """The model with its own methods again; the weights are what they have become.

    Raises:
        ValueError: something else has taken the place of a method since, and may call it; the
            model is as it was.
    """
    for module in model.modules():
        for name, method in vars(module).get(_MARK, {}).items():
            if vars(module).get(name) != method:
                raise ValueError(
                    f'restore: {name} of {type(module).__name__} is not what accelerate put there: '
                    'undo first what has replaced it since (prepare_inference with a dtype does), '
                    'or build the model anew'
                )
    for module in model.modules():
        for name in vars(module).pop(_MARK, ()):
            del vars(module)[name]
    return model
