"""The readable reference in plain PyTorch: the CPU path, and the judge of every other back end."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn_reference(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Float[Tensor, 'B Q heads L P 2'],
    attention_weights: Float[Tensor, 'B Q heads L P'],
) -> Float[Tensor, 'B Q C']:
    """See ``ops.ms_deform_attn``. Half types are computed in float32 and cast back at the end.

    Autocast is switched off: it would take the weighted sum back to the half type.
    """
    batch, _, num_heads, head_dim = value.shape
    exact = torch.promote_types(value.dtype, torch.float32)
    maps = value.to(exact).permute(0, 2, 3, 1).flatten(0, 1)  # (B heads, D, S)
    grid = (2 * sampling_locations.to(exact) - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(exact).transpose(1, 2).flatten(0, 1)  # (B heads, Q, L, P)

    out = maps.new_zeros(())
    areas = [height * width for height, width in level_shapes]
    with torch.autocast(value.device.type, enabled=False):
        for level, tokens in enumerate(maps.split(areas, dim=-1)):
            # Without a contiguous grid the call misses its fast path and takes a fifth longer.
            points = grid[:, :, level].contiguous()
            samples = F.grid_sample(
                tokens.unflatten(-1, level_shapes[level]), points, align_corners=False
            )
            # Level by level: the samples of all levels never exist together.
            out = out + (samples * weights[:, None, :, level]).sum(-1)  # (B heads, D, Q)
    out = out.view(batch, num_heads, head_dim, -1).permute(0, 3, 1, 2).flatten(2)
    return out.to(value.dtype)
