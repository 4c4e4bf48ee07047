"""What is to be done to a network for good is first tried on a copy, with a image of noise."""

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Of the image, in pixels.
_SIDE = 64
# A wrong norm moves maps by all of their range, TF32 convolutions by 1e-3.
TOLERANCE = 1e-2
_SMALLEST = torch.finfo(torch.float32).tiny


class CannotPrepareError(ValueError):
    """What of a model or of the settings cannot be prepared, what can, and the way out."""


class Trial(NamedTuple):
    """What is tried, and what is said where it fails.

    ``done`` is the participle of the change, ``why`` what may be the reason where the results
    move, ``way_out`` what to do then, ``dtype`` float32 or that of an autocast, ``tolerance`` the
    share of their range that the results may move by.
    """

    name: str
    done: str
    why: str
    way_out: str
    dtype: torch.dtype = torch.float32
    tolerance: float = TOLERANCE


def try_on_copy(network: nn.Module, change: Callable[[Any], Any], trial: Trial) -> None:
    """See that a copy of the network, which maps images, gives the same after ``change``.

    Raises:
        CannotPrepareError: it does not, or the change or the network raises.
    """
    name, done = trial.name, trial.done
    try:
        moved = _moved_by(copy.deepcopy(network).float(), change, trial.dtype)
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise CannotPrepareError(
            f'prepare_inference: {name} cannot be {done} and tried on a image of {_SIDE} x '
            f'{_SIDE}: {type(error).__name__}: {error}. {trial.way_out}'
        ) from error
    gc.collect()  # the copy, whose modules refer to themselves
    # Written so that NaN fails.
    if not moved <= trial.tolerance:
        raise CannotPrepareError(
            f'prepare_inference: {name} gives other numbers once it is {done} (by {moved:.2g} of '
            f'their range): {trial.why}. {trial.way_out}'
        )


@torch.no_grad()
def _moved_by(network: nn.Module, change: Callable[[Any], Any], dtype: torch.dtype) -> float:
    """The share of their range by which the results move, at most."""
    before = _results_of_noise(network, dtype)
    change(network)
    after = _results_of_noise(network, dtype)
    return max(_moved(new, old) for old, new in zip(before, after, strict=True))


def _moved(new: Tensor, old: Tensor) -> float:
    # What overflowed before may do so again.
    same = (new == old) | (new.isnan() & old.isnan())
    if bool(same.all()):
        return 0.0
    extent = (old.max() - old.min()).clamp(min=_SMALLEST)
    return float((new - old).abs().max() / extent)


def _results_of_noise(network: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    convolutions = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    channels = next((part.in_channels for part in convolutions), 3)
    # A generator of its own, always in the same state, leaves the run's random numbers alone.
    noise = torch.randn(1, channels, _SIDE, _SIDE, generator=torch.Generator())
    device = next(network.parameters()).device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return [result.float() for result in _tensors(network(noise.to(device)))]


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Of maps alone, or in any nesting of sequences."""
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for output in outputs:
            yield from _tensors(output)
