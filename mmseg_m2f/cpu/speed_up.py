"""Faster ``forward`` methods for the parts of a built backbone that are known."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from mmseg_m2f.cpu import resnet, swin


def speed_up(backbone: nn.Module) -> None:
    """Let the known parts of a backbone compute in fewer passes on a CPU, in place.

    Modules, parameters and their names stay, and so do the numbers up to rounding: in float32
    norms with frozen statistics are part of the convolutions, 1 x 1 convolutions and linear layers
    run on oneDNN, large 3 x 3 ones by Winograd's algorithm. Each part decides at every call; on
    another device, in another type, with hooks inside or captured by a compiler it does what its
    class does. Twice does no more than once, and unknown parts are left alone.
    """
    for module, forward in faster_forwards(backbone):
        module.forward = forward


def faster_forwards(backbone: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """The known parts, each with the method that ``speed_up`` gives it."""
    for module in backbone.modules():
        forward = resnet.forward_of(module) or swin.forward_of(module)
        if forward is not None:
            yield module, forward
