"""Fill in buffers that our models save and other implementations compute anew."""

import math

import torch
from torch import Tensor


def with_buffers(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add Swin's index buffers and, if they are missing, the counters of batch norms.

    Raises:
        ValueError: A table of relative positions has an impossible length.
    """
    filled = dict(ours)
    for key, value in ours.items():
        if key.endswith('.relative_position_bias_table'):
            filled[key.replace('bias_table', 'index')] = relative_position_index(value)
        elif key.endswith('.running_var'):
            counter = key.replace('running_var', 'num_batches_tracked')
            filled.setdefault(counter, torch.tensor(0, device=value.device))
    return filled


def relative_position_index(table: Tensor) -> Tensor:
    """Compute Swin's lookup ``(M * M, M * M)`` int64 into a bias ``table ((2M - 1)^2, heads)``.

    Raises:
        ValueError: No window has a table of that length.
    """
    width = window_width(len(table))
    side = (width + 1) // 2
    steps = torch.arange(side, device=table.device)
    position = (steps[:, None] * width + steps).flatten()
    return position[:, None] - position + 2 * side * (side - 1)


def window_width(rows: int) -> int:
    """Return ``2M - 1``, the offsets along one axis of a window with ``rows`` offsets in all.

    Raises:
        ValueError: No window has this many.
    """
    width = math.isqrt(rows)
    if width * width != rows or width % 2 == 0:
        raise ValueError(f'a relative position bias has (2 M - 1)^2 rows, not {rows}')
    return width
