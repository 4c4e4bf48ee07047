"""Predictions under an autocast that belongs to the model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class UnderAutocast:
    """``predict`` of a model under autocast of its device, wherever that is by then."""

    def __init__(self, model: nn.Module, original: Callable[..., Any], dtype: torch.dtype) -> None:
        self.model, self.original, self.dtype = model, original, dtype

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        with torch.autocast(next(self.model.parameters()).device.type, self.dtype):
            return self.original(*args, **kwargs)


def autocast_of(model: Any) -> UnderAutocast | None:
    """What ``set_autocast`` put around ``predict``."""
    owner = getattr(model.predict, '__self__', None)
    return owner if isinstance(owner, UnderAutocast) else None


def set_autocast(model: Any, dtype: torch.dtype | None) -> None:
    """Put ``predict`` under an autocast, in the place of one from before; None: under none."""
    before = autocast_of(model)
    if before is not None:
        model.predict = before.original
    if dtype is not None:
        # A bound method of a plain object survives copy.deepcopy and torch.save with the model.
        model.predict = UnderAutocast(model, model.predict, dtype).predict
