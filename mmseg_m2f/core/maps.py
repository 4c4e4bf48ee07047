"""Convolution, norm and resizing of maps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.core.layers import has_hooks
from mmseg_m2f.core.structures import PassedOn
from mmseg_m2f.cpu.convolution import Window, convolve
from mmseg_m2f.cpu.linear import is_captured


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` of one group and square windows through ``ops.convolution``."""

    def forward(self, x: Float[Tensor, 'B C h w']) -> Float[Tensor, 'B C2 h2 w2']:
        """On a CPU in float32 channels last."""
        window = Window(self.stride[0], int(self.padding[0]), self.dilation[0])
        return convolve(x, self.weight, self.bias, window)


class ConvNorm(nn.Module):
    """Convolution, group norm and, if asked, ReLU; padding keeps the size."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 1,
        *,
        norm_groups: int = 32,
        bias: bool = False,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.activate = activate

    def forward(self, x: Float[Tensor, 'B C h w'] | PassedOn) -> Float[Tensor, 'B C2 h w']:
        """Map ``(B, in_channels, h, w)`` to ``(B, channels, h, w)``.

        A map alone in a `PassedOn` list lives until the convolution has read it.
        """
        y: Tensor = self.norm(self.conv(x.pop() if isinstance(x, PassedOn) else x))
        return F.relu(y, inplace=True) if self.activate else y


def pass_on(maps: list[Tensor], block: nn.Module) -> Float[Tensor, 'B C2 h w']:
    """``block(maps.pop())``, without gradient by a `PassedOn` list where nobody could notice."""
    noticed = torch.is_grad_enabled() or is_captured() or has_hooks(block)
    if noticed or type(block) is not ConvNorm:
        return block(maps.pop())
    return block(PassedOn([maps.pop()]))


def in_order_of(maps: Float[Tensor, 'B C h w'], other: Tensor) -> Float[Tensor, 'B C h w']:
    """``maps`` in channels-last order if ``other`` is, else in the usual one."""
    if other.is_contiguous() or not other.is_contiguous(memory_format=torch.channels_last):
        return maps.contiguous()
    pixels = maps.permute(0, 2, 3, 1)
    # Of one image any stride is contiguous, but only the usual one tells operators the order.
    return pixels.flatten(0, 2).view(pixels.shape).permute(0, 3, 1, 2)


def resize_maps(maps: Float[Tensor, 'B C h w'], size: tuple[int, int]) -> Float[Tensor, 'B C H W']:
    """Bilinearly to ``size``, ``align_corners=False``; channels-last maps stay so.

    On several threads PyTorch brings maps of many channels into the channels-last order and the
    result back, which takes longer than the resizing; of images with one channel it does not.
    """
    if not maps.is_contiguous():
        return F.interpolate(maps, size=size, mode='bilinear', align_corners=False)
    images = maps.flatten(0, 1)[:, None]
    resized = F.interpolate(images, size=size, mode='bilinear', align_corners=False)
    return resized.view(*maps.shape[:2], *size)
