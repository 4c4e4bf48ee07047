"""Tensors as NumPy arrays on the host."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_array(values: Any) -> np.ndarray:
    """Copy a tensor to the host as an array; turn anything else into an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def columnwise(masks: Tensor) -> np.ndarray:
    """Copy ``masks (N, H, W)`` to the host as bool, the pixels of each column side by side.

    Run-length encoding reads a mask column by column, and the device transposes faster than the
    host does.
    """
    return to_array(masks.to(torch.bool).transpose(1, 2).contiguous()).transpose(0, 2, 1)
