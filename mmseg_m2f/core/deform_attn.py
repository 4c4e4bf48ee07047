"""Multi-scale deformable self-attention (Deformable DETR, arXiv:2010.04159)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmseg_m2f.ops.ms_deform_attn import BACKENDS, ms_deform_attn

# (height, width) of each level
LevelShapes = Sequence[tuple[int, int]]


class MSDeformAttn(nn.Module):
    """Attention of each query to ``num_points`` sampled places per head and level.

    The places are offsets that the query predicts. ``backend`` names the operator's back end
    (``ops.ms_deform_attn``); ``'auto'`` chooses.
    """

    def __init__(
        self,
        channels: int = 256,
        num_heads: int = 8,
        num_levels: int = 3,
        num_points: int = 4,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        BACKENDS.check_name(backend)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.backend = backend
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(channels, 2 * num_samples)
        self.attention_weights = nn.Linear(channels, num_samples)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize point p of head h to p + 1 pixels in direction h; all weights start equal.

        Source: official ``pixel_decoder/ops/modules/ms_deform_attn.py``.
        """
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.attention_weights.bias)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None] * steps[None, None, :, None]  # (heads, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Float[Tensor, 'B S C'],
        value: Float[Tensor, 'B S C'],
        reference_points: Float[Tensor, 'S 2'],
        level_shapes: LevelShapes,
    ) -> Float[Tensor, 'B S C']:
        """Attend from ``query`` (with positions) to ``value`` (without).

        Args:
            query: one per token of all levels, coarsest level first.
            value: the tokens themselves.
            reference_points: ``(x, y)`` in [0, 1] of each query, the same for all levels.
            level_shapes: ``(height, width)`` of each level.
        """
        samples = (self.num_heads, self.num_levels, self.num_points)
        attended = ms_deform_attn(
            self.value_proj(value).unflatten(-1, (self.num_heads, -1)),
            level_shapes,
            reference_points,
            self.sampling_offsets(query).unflatten(-1, (*samples, 2)),
            self.attention_weights(query).unflatten(-1, samples),
            self.backend,
        )
        return self.output_proj(attended)


def pixel_centers(
    level_shapes: LevelShapes, *, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, 'S 2']:
    """Return the centers ``(x, y)`` in (0, 1) of all levels' tokens, in token order."""
    centers = []
    for height, width in level_shapes:
        y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        centers.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1))
    return torch.cat(centers)
