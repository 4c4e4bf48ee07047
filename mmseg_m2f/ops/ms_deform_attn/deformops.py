"""The operator of the optional package ``deformops`` (MIT; TMLR 2026, openreview Q4jZ7zKNKx).

It takes positions as shares of the maps' extents and weights, where the contract has offsets,
reference points and logits: the positions are computed here in float32, and stored.
"""

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

PYTHONS = ((3, 12), (3, 13))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_LEVELS = 5
POINTS = (4, 8)
CHANNELS = 8


def _missing() -> str | None:
    """Why the package cannot be imported here; it needs torch 2.11, which pip sees to."""
    if find_spec('deformops') is not None:
        return None
    if sys.version_info[:2] not in PYTHONS:
        version = '.'.join(map(str, sys.version_info[:2]))
        return f'the package deformops needs Python 3.12 or 3.13, got {version}'
    return 'the package deformops is not installed (pip install deformops)'


# Asked once: the answer cannot change, and ``torch.compile`` cannot trace the question.
_MISSING = _missing()


def why_not(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> str | None:
    """None for float32, float16 or bfloat16 on CUDA within the package's limits of shape."""
    if _MISSING is not None:
        return _MISSING
    if value.device.type != 'cuda':
        return f'it is for CUDA, got {value.device.type}'
    if value.dtype not in DTYPES:
        return f'it takes float32, float16 and bfloat16, got {value.dtype}'
    if len(level_shapes) > MAX_LEVELS:
        return f'it takes up to {MAX_LEVELS} levels, got {len(level_shapes)}'
    if logits.shape[4] not in POINTS:
        return f'it takes 4 or 8 points per level, got {logits.shape[4]}'
    if value.shape[3] % CHANNELS:
        return f'it takes heads of a multiple of {CHANNELS} channels, got {value.shape[3]}'
    return None


def ms_deform_attn_deformops(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Float[Tensor, 'Q 2'],
    offsets: Float[Tensor, 'B Q heads L P 2'],
    logits: Float[Tensor, 'B Q heads L P'],
) -> Float[Tensor, 'B Q heads*D']:
    """See ``ops.ms_deform_attn``. The weights are rounded to the dtype of ``value``, as it asks."""
    shapes, starts, extents = _level_tensors(tuple(map(tuple, level_shapes)), value.device)
    locations = reference_points.float()[:, None, None, None] + offsets.float() / extents
    weights = logits.flatten(3).float().softmax(-1).to(value.dtype)
    # Left to itself it sums half-type gradients of value in the half type on the newest GPUs.
    options = {} if value.dtype == torch.float32 else {'fp32acc': True}
    return _operator()(value, shapes, starts, locations, weights, **options)


def _operator() -> Any:
    return importlib.import_module('deformops.registry').msda


@functools.lru_cache(maxsize=256)
def _level_tensors(
    level_shapes: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes and first tokens of the levels, and their extents ``(L, 1, 2)`` as (width, height).

    Made once for each set of shapes: a tensor made from Python numbers waits for the GPU.
    """
    shapes = torch.tensor(level_shapes, device=device)
    areas = shapes.prod(-1)
    return shapes, areas.cumsum(0) - areas, shapes.flip(-1).float()[:, None]
