"""Inference on the CPU: the whole operator as one ``embedding_bag``.

A token's channels of one head are a row of a table; a query's output is the weighted sum of
``L * P * 4`` rows (the corners of its samples). PyTorch sums rows without writing the samples, in
about half the time of ``grid_sample``; its backward pass is slower, so training stays with that.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def why_not(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> str | None:
    """None for float32 or float64 on the CPU without gradient, else the objection."""
    tensors = (value, sampling_locations, attention_weights)
    if value.device.type != 'cpu':
        return f'it is made for the CPU, got {value.device.type}'
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return 'it is for inference, and a gradient is asked for'
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or dtypes.isdisjoint({torch.float32, torch.float64}):
        return f'it needs float32 or float64 throughout, got {sorted(map(str, dtypes))}'
    return None


def ms_deform_attn_embedding_bag(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Float[Tensor, 'B Q heads L P 2'],
    attention_weights: Float[Tensor, 'B Q heads L P'],
) -> Float[Tensor, 'B Q C']:
    """See ``ops.ms_deform_attn``."""
    batch, num_tokens, num_heads, _ = value.shape
    # int32 halves the traffic of the indices; the table must then have fewer than 2^31 rows.
    num_rows = batch * num_tokens * num_heads
    index_type = torch.int32 if num_rows < 2**31 else torch.int64
    pixel, corner_weights = _corners(level_shapes, sampling_locations, index_type)
    picture = torch.arange(batch, dtype=index_type).view(-1, 1, 1, 1, 1, 1) * num_tokens
    head = torch.arange(num_heads, dtype=index_type).view(-1, 1, 1, 1)
    rows = (picture + pixel) * num_heads + head
    out = F.embedding_bag(
        rows.flatten(0, 2).flatten(1),
        value.reshape(num_rows, -1),
        per_sample_weights=(attention_weights[..., None] * corner_weights).flatten(0, 2).flatten(1),
        mode='sum',
    )
    return out.view(batch, -1, num_heads * value.shape[-1])


def _corners(
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Float[Tensor, 'B Q heads L P 2'],
    index_type: torch.dtype,
) -> tuple[Int[Tensor, 'B Q heads L P 4'], Float[Tensor, 'B Q heads L P 4']]:
    """Token and bilinear weight of the four pixels around each point; weight 0 outside."""
    sizes = torch.tensor(level_shapes)
    areas = sizes.prod(-1)
    start = (areas.cumsum(0) - areas).to(index_type)[:, None]
    height, width = sizes.to(index_type)[:, :, None].unbind(1)  # each (L, 1)
    extent = torch.cat([width, height], dim=1).to(sampling_locations)[:, None]
    position = sampling_locations * extent - 0.5
    low = position.floor()
    above = position - low
    x, y = low.to(index_type).unbind(-1)
    weight_x, weight_y = above.unbind(-1)
    tokens, weights = [], []
    for row, row_weight in ((y, 1 - weight_y), (y + 1, weight_y)):
        for column, column_weight in ((x, 1 - weight_x), (x + 1, weight_x)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            token = start + row * width + column
            tokens.append(torch.where(inside, token, 0))
            weights.append(row_weight * column_weight * inside)
    return torch.stack(tokens, -1), torch.stack(weights, -1)
