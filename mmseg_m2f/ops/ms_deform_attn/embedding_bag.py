"""Inference on a CPU without a compiler: the whole operator as one ``embedding_bag``.

A token's channels of one head are a row of a table; a query's output is the weighted sum of
``L * P * 4`` rows (the corners of its samples). PyTorch sums rows without writing the samples, in
about half the time of ``grid_sample``; its backward pass is slower, so training stays with that.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.ops.ms_deform_attn.reference import Locations, Weights, from_locations


def why_not(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> str | None:
    """None for float32 or float64 on the CPU without gradient, else the objection."""
    tensors = (value, offsets, logits)
    if value.device.type != 'cpu':
        return f'it is made for the CPU, got {value.device.type}'
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return 'it is for inference, and a gradient is asked for'
    if value.dtype not in (torch.float32, torch.float64):
        return f'it is made for float32 and float64, got {value.dtype}'
    return None


@from_locations
def ms_deform_attn_embedding_bag(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Locations,
    attention_weights: Weights,
) -> Float[Tensor, 'B Q C']:
    """See ``ops.ms_deform_attn``."""
    batch, num_tokens, num_heads, _ = value.shape
    # int32 halves the traffic of the indices; the table must then have fewer than 2^31 rows.
    num_rows = batch * num_tokens * num_heads
    index_type = torch.int32 if num_rows < 2**31 else torch.int64
    (column, weight_x), (row, weight_y) = _corners(level_shapes, sampling_locations, index_type)

    first = _first_tokens(level_shapes, index_type)
    image = torch.arange(batch, dtype=index_type).view(-1, 1, 1, 1, 1, 1) * num_tokens
    head = torch.arange(num_heads, dtype=index_type).view(-1, 1, 1, 1)
    widths = torch.tensor([width for _, width in level_shapes], dtype=index_type).view(-1, 1, 1)
    line = ((row * widths + first + image) * num_heads + head)[..., None]
    rows = line + (column * num_heads)[..., None, :]  # (B, Q, heads, L, P, 2, 2)
    weights = (weight_y * attention_weights[..., None])[..., None] * weight_x[..., None, :]
    out = F.embedding_bag(
        rows.flatten(3).flatten(0, 2),
        value.reshape(num_rows, -1),
        per_sample_weights=weights.flatten(3).flatten(0, 2),
        mode='sum',
    )
    return out.view(batch, -1, num_heads * value.shape[-1])


def _corners(
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Locations,
    index_type: torch.dtype,
) -> list[tuple[Int[Tensor, 'B Q heads L P 2'], Float[Tensor, 'B Q heads L P 2']]]:
    """For x, then y: the two pixels around each point and their linear weights.

    A pixel outside the map becomes pixel 0 with weight 0.
    """
    sizes = sampling_locations.new_tensor(level_shapes).flip(-1)  # (L, 2): width, height
    corners = []
    for size, location in zip(sizes.T, sampling_locations.unbind(-1), strict=True):
        size = size.view(-1, 1, 1)
        position = location[..., None] * size - 0.5
        low = position.floor()
        above = position - low
        pixel = torch.cat([low, low + 1], dim=-1)
        inside = (pixel >= 0) & (pixel < size)
        weight = torch.cat([1 - above, above], dim=-1) * inside
        corners.append((torch.where(inside, pixel, 0).to(index_type), weight))
    return corners


def _first_tokens(
    level_shapes: Sequence[tuple[int, int]], index_type: torch.dtype
) -> Int[Tensor, 'L 1 1']:
    areas = torch.tensor(level_shapes).prod(-1)
    return (areas.cumsum(0) - areas).to(index_type).view(-1, 1, 1)
