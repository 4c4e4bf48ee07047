"""A convolution with what follows it in a residual network: the contract."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from mmseg_m2f.cpu.convolution import fused
from mmseg_m2f.cpu.convolution.reference import convolve_reference
from mmseg_m2f.ops.backends import Backend, BackendTable


class Window(NamedTuple):
    """How a kernel moves over a map, the same in both directions."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1


EACH_PIXEL = Window()
BACKENDS = BackendTable('convolve', Backend('reference', convolve_reference, lambda *_: None))
BACKENDS.register(Backend('fused', fused.convolve_fused, fused.why_not))


def convolve(
    x: Float[Tensor, 'B C h w'],
    weight: Float[Tensor, 'K C kernel kernel'],
    bias: Float[Tensor, ' K'] | None = None,
    window: Window = EACH_PIXEL,
    *,
    scale: Float[Tensor, ' K'] | None = None,
    residual: Float[Tensor, 'B K h2 w2'] | None = None,
    relu: bool = False,
) -> Float[Tensor, 'B K h2 w2']:
    """``relu(scale * (x * weight) + bias + residual)``.

    On a CPU in float32 the result is in channels-last order, and a 1 x 1 convolution is a product
    on oneDNN, a large 3 x 3 one of stride 1 Winograd's algorithm: ``fused``. There neither the
    product by itself nor what the scale or ``relu`` were applied to is kept for the backward pass.

    Args:
        x: map.
        weight: one group; square.
        bias: added to each channel.
        window: stride, padding, dilation.
        scale: factor of each output channel, as of a frozen norm.
        residual: added before ``relu``.
        relu: whether negative results become 0.
    """
    args = (x, weight, bias, window, scale, residual, relu)
    return BACKENDS.choose('auto', *args).function(*args)
