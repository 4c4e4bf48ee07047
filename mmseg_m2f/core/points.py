"""Draw points and sample maps at them (paper section 3.3; PointRend, arXiv:1912.08193)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.chunks import map_chunks, rows_per_chunk
from mmseg_m2f.core.config import PointConfig
from mmseg_m2f.core.structures import mask_logits

# (number of rows, number of points, device, dtype) -> (rows, points, 2), (x, y) in [0, 1].
SamplePoints = Callable[[int, int, torch.device, torch.dtype], Tensor]
# Mask logits (M, h, w) -> points (M, P, 2), (x, y) in [0, 1].
DrawPoints = Callable[[Tensor], Tensor]


def uniform_points(
    num_rows: int, num_points: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, 'M P 2']:
    """Draw independent uniform points from the global generator of ``device``."""
    return torch.rand(num_rows, num_points, 2, device=device, dtype=dtype)


def sample_features(
    features: Float[Tensor, 'M C h w'], points: Float[Tensor, 'M P 2']
) -> Float[Tensor, 'M C P']:
    """Sample ``features`` bilinearly at ``points``; zero outside, ``align_corners=False``."""
    grid = (2 * points - 1)[:, :, None]  # grid_sample's coordinates run from -1 to 1
    return F.grid_sample(features, grid, align_corners=False).squeeze(-1)


@torch.no_grad()
def sample_masks(
    masks: Bool[Tensor, 'N H W'], mask_idx: Int[Tensor, 'M'], points: Float[Tensor, '#M P 2']
) -> Float[Tensor, 'M P']:
    """Sample ``masks[mask_idx]`` bilinearly at ``points``, in the dtype of ``points``.

    Ground truth stays one byte per pixel: only a chunk of the masks exists as floats at a time.
    ``points`` of one row serve all masks.
    """

    def sample(index: Tensor, at: Tensor) -> Tensor:
        return sample_features(masks[index, None].to(at.dtype), at)[:, 0]

    bytes_per_mask = points.element_size() * masks.shape[1:].numel()
    points = points.expand(len(mask_idx), -1, -1)
    return map_chunks(sample, mask_idx, points, bytes_per_row=bytes_per_mask)


def sample_logits(
    mask_embed: Float[Tensor, 'M C'], mask_features: Float[Tensor, 'C h w'], draw: DrawPoints
) -> tuple[Float[Tensor, 'M P'], Float[Tensor, 'M P 2']]:
    """Let ``draw`` choose points from the logits of each mask; sample the logits there.

    Returns:
        The logits at the points, with gradient, and the points. ``draw`` is called for each chunk
        of masks, without gradient.
    """

    def sample(embed: Tensor, at: Tensor) -> Tensor:
        return sample_features(mask_logits(embed, mask_features)[:, None], at)[:, 0]

    # The logits are kept for the backward pass. A gradient of our own that keeps none was measured:
    # same time, same memory (ResNet-50, 512 x 512, two images of 20 targets, one thread).
    bytes_per_mask = mask_features.element_size() * mask_features.shape[1:].numel()
    with torch.no_grad():
        chunks = mask_embed.split(rows_per_chunk(bytes_per_mask))
        points = torch.cat([draw(mask_logits(embed, mask_features)) for embed in chunks])
    return map_chunks(sample, mask_embed, points, bytes_per_row=bytes_per_mask), points


class PointSampler:
    """Draw points for the mask losses, most of them where the prediction is least certain.

    ``sample_points`` draws uniform points; replace it to make losses repeatable. It is called for
    the candidates, then for the remaining uniform points, of each chunk of masks.
    """

    def __init__(
        self, config: PointConfig | None = None, sample_points: SamplePoints = uniform_points
    ) -> None:
        self.config = config or PointConfig()
        self.sample_points = sample_points
        self.num_candidates = int(self.config.oversample_ratio * self.config.num_points)
        self.num_uncertain = int(self.config.importance_ratio * self.config.num_points)

    @torch.no_grad()
    def __call__(self, mask_logits: Float[Tensor, 'M h w']) -> Float[Tensor, 'M P 2']:
        """Draw ``num_points`` points per mask, the uncertain ones first; they carry no gradient.

        Source: PointRend's ``get_uncertain_point_coords_with_randomness``.
        """
        bytes_per_mask = 2 * self.num_candidates * mask_logits.element_size()
        chunks = mask_logits.split(rows_per_chunk(bytes_per_mask))
        return torch.cat([self._draw(logits) for logits in chunks])

    def _draw(self, mask_logits: Float[Tensor, 'M h w']) -> Float[Tensor, 'M P 2']:
        num_masks, options = len(mask_logits), (mask_logits.device, mask_logits.dtype)
        candidates = self.sample_points(num_masks, self.num_candidates, *options)
        # The uncertainty is that of the interpolated logit, not the interpolated uncertainty:
        # between a +1 and a -1 pixel the border is uncertain although both pixels are sure.
        certainty = sample_features(mask_logits[:, None], candidates)[:, 0].abs()
        chosen = certainty.topk(self.num_uncertain, dim=1, largest=False, sorted=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        num_rest = self.config.num_points - self.num_uncertain
        return torch.cat([uncertain, self.sample_points(num_masks, num_rest, *options)], dim=1)
