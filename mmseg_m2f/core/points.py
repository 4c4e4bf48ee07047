"""Drawing points and reading maps at them (paper section 3.3; PointRend, arXiv:1912.08193)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmseg_m2f.core.config import PointConfig

# (number of rows, number of points, device, dtype) -> (rows, points, 2), (x, y) in [0, 1].
SamplePoints = Callable[[int, int, torch.device, torch.dtype], Tensor]


def uniform_points(
    num_rows: int, num_points: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, 'M P 2']:
    """Independent uniform points from the global generator of ``device``."""
    return torch.rand(num_rows, num_points, 2, device=device, dtype=dtype)


def sample_features(
    features: Float[Tensor, 'M C h w'], points: Float[Tensor, 'M P 2']
) -> Float[Tensor, 'M C P']:
    """Bilinear values of ``features`` at ``points``; zero outside, ``align_corners=False``."""
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(features, grid, align_corners=False).squeeze(-1)


@torch.no_grad()
def sample_masks(
    masks: Bool[Tensor, 'N H W'], mask_idx: Int[Tensor, 'M'], points: Float[Tensor, '#M P 2']
) -> Float[Tensor, 'M P']:
    """Bilinear values of ``masks[mask_idx]`` at ``points``, in the dtype of ``points``.

    Equals ``grid_sample`` of the masks as floats, without ever holding them as floats: ground truth
    stays one byte per pixel. ``points`` of one row serve all masks.
    """
    height, width = masks.shape[-2:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5  # (M, P)
    x0, y0 = x.floor(), y.floor()
    flat = masks.view(torch.uint8).flatten()
    row_start = (mask_idx * (height * width))[:, None]
    values = points.new_zeros(())
    for corner_y, weight_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for corner_x, weight_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            inside = (corner_x >= 0) & (corner_x < width) & (corner_y >= 0) & (corner_y < height)
            pixel = corner_y.clamp(0, height - 1).long() * width
            pixel = pixel + corner_x.clamp(0, width - 1).long()
            values = values + flat[row_start + pixel] * (weight_x * weight_y * inside)
    return values


class PointSampler:
    """Points for the mask losses: most of them where the prediction is least certain.

    ``sample_points`` draws uniform points and may be replaced to make losses repeatable; it is
    called once for the candidates and once for the remaining uniform points of each picture.
    """

    def __init__(
        self, config: PointConfig | None = None, sample_points: SamplePoints = uniform_points
    ) -> None:
        self.config = config or PointConfig()
        self.sample_points = sample_points

    @torch.no_grad()
    def __call__(self, mask_logits: Float[Tensor, 'M h w']) -> Float[Tensor, 'M P 2']:
        """``num_points`` points per mask, the uncertain ones first; no gradient flows through them.

        Source: PointRend's ``get_uncertain_point_coords_with_randomness``. The uncertainty is that
        of the interpolated logit, not the interpolated uncertainty: between a +1 and a -1 pixel
        the border is uncertain although both pixels are sure.
        """
        config = self.config
        num_masks = len(mask_logits)
        options = (mask_logits.device, mask_logits.dtype)
        num_uncertain = int(config.importance_ratio * config.num_points)
        num_candidates = int(config.oversample_ratio * config.num_points)

        candidates = self.sample_points(num_masks, num_candidates, *options)
        certainty = sample_features(mask_logits[:, None], candidates)[:, 0].abs()
        chosen = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        rest = self.sample_points(num_masks, config.num_points - num_uncertain, *options)
        return torch.cat([uncertain, rest], dim=1)
