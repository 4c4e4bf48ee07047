"""Tensors of a Swin Transformer that other implementations save in another form or not at all."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def to_unfold_order(value: Tensor) -> Tensor:
    """Reorder the input channels of Swin's patch merging to the order of ``nn.Unfold``.

    The original code concatenates the pixels of a 2 x 2 block, (row, column) = (0,0), (1,0), (0,1),
    (1,1), each with all channels. mmseg and mmdet unfold: the four pixels of the first channel, row
    by row, then of the next. The shapes are equal, so only the source of a tensor tells its order.
    The last axis has length ``4 * C``.
    """
    return value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def from_unfold_order(value: Tensor) -> Tensor:
    """Invert ``to_unfold_order``."""
    return value.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)


def relative_position_index(table: Tensor) -> Tensor:
    """Compute Swin's lookup ``(M * M, M * M)`` int64 into a bias ``table ((2M - 1)^2, heads)``."""
    width = _window_width(len(table))
    side = (width + 1) // 2
    steps = torch.arange(side, device=table.device)
    position = (steps[:, None] * width + steps).flatten()
    return position[:, None] - position + 2 * side * (side - 1)


def resize_window(table: Tensor, rows: int) -> Tensor:
    """Resize Swin's bias ``table ((2M - 1)^2, heads)`` to a window with ``rows`` offsets, bicubic.

    Source: Microsoft's Swin, ``utils.py``, which loads other windows this way.

    Raises:
        ValueError: A number of offsets is not an odd square.
    """
    old, new = _window_width(len(table)), _window_width(rows)
    maps = table.float().T.unflatten(1, (old, old))[None]  # (1, heads, 2M - 1, 2M - 1)
    resized = F.interpolate(maps, (new, new), mode='bicubic', align_corners=False)
    return resized[0].flatten(1).T.contiguous().to(table.dtype)


def _window_width(rows: int) -> int:
    """Return ``2M - 1``, the offsets along one axis of a window with ``rows`` offsets in all."""
    width = math.isqrt(rows)
    if width * width != rows or width % 2 == 0:
        raise ValueError(f'a relative position bias has (2 M - 1)^2 rows, not {rows}')
    return width
