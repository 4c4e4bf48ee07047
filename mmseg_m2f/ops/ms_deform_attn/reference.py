"""The readable reference in plain PyTorch. It runs anywhere; the other back ends must equal it."""

import functools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Locations = Float[Tensor, 'B Q heads L P 2']
Weights = Float[Tensor, 'B Q heads L P']


def locations_and_weights(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Float[Tensor, 'Q 2'],
    offsets: Locations,
    logits: Weights,
) -> tuple[Locations, Weights]:
    """Compute where the samples lie and what they weigh, in float32 (float64 for float64 values).

    Returns:
        Locations ``(x, y)``, which are in [0, 1] inside a map, ``align_corners=False``; and the
        softmax of the logits over levels and points together.
    """
    compute_dtype = torch.promote_types(value.dtype, torch.float32)
    extent = _extent(tuple(level_shapes), value.device, compute_dtype)
    shifts = offsets.to(compute_dtype) / extent[:, None]
    weights = logits.to(compute_dtype).flatten(3).softmax(-1).view(logits.shape)
    return reference_points.to(compute_dtype)[:, None, None, None] + shifts, weights


@functools.lru_cache(maxsize=256)
def _extent(
    level_shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, 'L 2']:
    """Return width and height of each level; cached, so that no step waits for a copy."""
    # A tensor made under inference mode could not be kept for a later backward pass.
    with torch.inference_mode(False):
        sizes = [(width, height) for height, width in level_shapes]
        return torch.tensor(sizes, device=device, dtype=dtype)


def from_locations(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn ``function(value, level_shapes, locations, weights)`` into a back end.

    The back end takes the arguments of ``ms_deform_attn``.
    """

    @functools.wraps(function)
    def run(
        value: Tensor,
        level_shapes: Sequence[tuple[int, int]],
        reference_points: Tensor,
        offsets: Tensor,
        logits: Tensor,
    ) -> Tensor:
        sampled = locations_and_weights(value, level_shapes, reference_points, offsets, logits)
        return function(value, level_shapes, *sampled)

    return run


@from_locations
def ms_deform_attn_reference(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Locations,
    attention_weights: Weights,
) -> Float[Tensor, 'B Q C']:
    """Compute ``ops.ms_deform_attn``. Half types are computed in float32 and cast back at the end.

    Autocast is switched off: it would take the weighted sum back to the half type.
    """
    batch, _, num_heads, head_dim = value.shape
    compute_dtype = sampling_locations.dtype
    maps = value.to(compute_dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B heads, D, S)
    grid = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # (B heads, Q, L, P)

    out = maps.new_zeros(())
    areas = [height * width for height, width in level_shapes]
    with torch.autocast(value.device.type, enabled=False):
        for level, tokens in enumerate(maps.split(areas, dim=-1)):
            # grid_sample is a fifth slower on a grid that is not contiguous.
            points = grid[:, :, level].contiguous()
            samples = F.grid_sample(
                tokens.unflatten(-1, level_shapes[level]), points, align_corners=False
            )
            # The samples of one level exist at a time.
            out = out + (samples * weights[:, None, :, level]).sum(-1)  # (B heads, D, Q)
    out = out.view(batch, num_heads, head_dim, -1).permute(0, 3, 1, 2).flatten(2)
    return out.to(value.dtype)
