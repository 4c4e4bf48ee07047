"""What is to be done to a backbone for good is first tried on a copy, with a picture of noise."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Of the picture, and what share of their range the maps may move by: a wrong norm moves them by
# all of it, TF32 convolutions by 1e-3.
_SIDE, _TOLERANCE = 64, 1e-2
_SMALLEST = torch.finfo(torch.float32).tiny


class CannotPrepareError(ValueError):
    """What of a model or of the settings cannot be prepared, what can, and the way out."""


def try_on_copy(
    backbone: nn.Module,
    change: Callable[[nn.Module], Any],
    done: str,
    dtype: torch.dtype,
    why: str,
    way_out: str,
) -> None:
    """See that a copy of the backbone gives the same maps after ``change``.

    Args:
        backbone: stays as it is.
        change: works in place.
        done: the participle of what it does.
        dtype: float32, or that of an autocast.
        why: what may be the reason where the maps move.
        way_out: what to do then.

    Raises:
        CannotPrepareError: they move, or the change or the backbone raises.
    """
    name = type(backbone).__name__
    try:
        moved = _moved_by(copy.deepcopy(backbone).float(), change, dtype)
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise CannotPrepareError(
            f'prepare_inference: {name} cannot be {done} and tried on a picture of {_SIDE} x '
            f'{_SIDE}: {type(error).__name__}: {error}. {way_out}'
        ) from error
    # Written so that NaN fails.
    if not moved <= _TOLERANCE:
        raise CannotPrepareError(
            f'prepare_inference: {name} gives other maps once it is {done} (by {moved:.2g} of '
            f'their range): {why}. {way_out}'
        )


@torch.no_grad()
def _moved_by(backbone: nn.Module, change: Callable[[nn.Module], Any], dtype: torch.dtype) -> float:
    """The share of their range by which the maps move."""
    before = _maps_of_noise(backbone, dtype)
    change(backbone)
    after = _maps_of_noise(backbone, dtype)
    shares = [
        (new - old).abs().max() / (old.max() - old.min()).clamp(min=_SMALLEST)
        for old, new in zip(before, after, strict=True)
    ]
    return float(torch.stack(shares).max())


def _maps_of_noise(backbone: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    convolutions = (part for part in backbone.modules() if isinstance(part, nn.Conv2d))
    channels = next((part.in_channels for part in convolutions), 3)
    # A generator of its own, always in the same state, leaves the run's random numbers alone.
    noise = torch.randn(1, channels, _SIDE, _SIDE, generator=torch.Generator())
    device = next(backbone.parameters()).device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return [maps.float() for maps in _as_list(backbone(noise.to(device)))]


def _as_list(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
