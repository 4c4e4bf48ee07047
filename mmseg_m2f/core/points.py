"""Drawing points and reading maps at them (paper section 3.3; PointRend, arXiv:1912.08193)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmseg_m2f.core.config import PointConfig
from mmseg_m2f.core.structures import mask_logits

# Rows are worked on in pieces of at most so many points, or so many pixels of masks: with hundreds
# of targets all rows at once take several times the memory of the result.
PIECE_POINTS = 2**20
PIECE_PIXELS = 2**23
PIECE_LOGITS = 2**26  # 256 MiB of mask logits: more than most images have

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
    return F.grid_sample(features, _grid(points), align_corners=False).squeeze(-1)


def per_image(maps: Float[Tensor, 'B C h w']) -> Sequence[Float[Tensor, 'C h w']]:
    """The maps of each image, with gradients that come together channels-last if ``maps`` are so.

    Those of ``maps[i]`` are put together in the usual order, and the way there and back takes a CPU
    some twenty times as long as one copy.
    """
    if maps.is_contiguous():
        return maps.unbind()
    return [pixels.permute(2, 0, 1) for pixels in maps.permute(0, 2, 3, 1).unbind()]


@torch.no_grad()
def sample_pixels(
    features: Float[Tensor, 'C h w'], points: Float[Tensor, 'P 2']
) -> Float[Tensor, 'P C']:
    """``sample_features`` of one image, a row per point, without gradient.

    Channels-last on a CPU a point is the weighted sum of four rows of a table.
    """
    pixels = features.permute(1, 2, 0)
    if features.device.type != 'cpu' or not pixels.is_contiguous():
        return sample_features(features[None], points[None])[0].T
    corners = list(_corners(points, (pixels.shape[0], pixels.shape[1])))
    index, weight = (torch.stack(values, dim=-1) for values in zip(*corners, strict=True))
    return F.embedding_bag(index, pixels.flatten(0, 1), per_sample_weights=weight, mode='sum')


def _corners(
    points: Float[Tensor, '*M 2'], size: tuple[int, int]
) -> Iterator[tuple[Int[Tensor, '*M'], Float[Tensor, '*M']]]:
    """The four pixels around each point, by rows, and their bilinear shares; 0 outside."""
    height, width = size
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    x0, y0 = x.floor(), y.floor()
    for corner_y, weight_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for corner_x, weight_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            inside = (corner_x >= 0) & (corner_x < width) & (corner_y >= 0) & (corner_y < height)
            pixel = corner_y.clamp(0, height - 1).long() * width
            yield pixel + corner_x.clamp(0, width - 1).long(), weight_x * weight_y * inside


def _grid(points: Float[Tensor, 'M P 2']) -> Float[Tensor, 'M P 1 2']:
    return (2 * points - 1)[:, :, None]


def _rows(size: int, limit: int) -> int:
    """Of a piece: as many as have ``limit`` numbers at ``size`` each, at least one."""
    return max(limit // max(size, 1), 1)


def sample_logits(
    mask_embed: Float[Tensor, 'M C'],
    mask_features: Float[Tensor, 'C h w'],
    draw: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, 'M P'], Float[Tensor, 'M P 2']]:
    """Mask logits at the points that ``draw`` chooses from them, and these points.

    The logits are formed once and not kept for the backward pass, which needs only their inputs;
    their gradient, as large, never exists as a whole. Of very many masks, ``PIECE_LOGITS``, they
    are formed in pieces, and ``draw`` is called for each.
    """
    return _SampledLogits.apply(mask_embed, mask_features, draw)


class _SampledLogits(torch.autograd.Function):
    """Logits at points, differentiated as the function of embeddings and features that they are."""

    @staticmethod
    def forward(
        ctx: Any, mask_embed: Tensor, mask_features: Tensor, draw: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Values ``(M, P)`` and points."""
        rows = _rows(mask_features.shape[1:].numel(), PIECE_LOGITS)
        pieces = [_drawn(some, mask_features, draw) for some in mask_embed.split(rows)]
        values, points = map(torch.cat, zip(*pieces, strict=True)) if pieces[1:] else pieces[0]
        ctx.mark_non_differentiable(points)
        ctx.save_for_backward(mask_embed, mask_features, points)
        return values, points

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Of ``mask_embed (M, C)`` and ``mask_features (C, h, w)``."""
        mask_embed, mask_features, points = ctx.saved_tensors
        needs_embed, needs_features = ctx.needs_input_grad[:2]
        features = mask_features.flatten(1)
        embed_grad, features_grad = torch.zeros_like(mask_embed), torch.zeros_like(features)
        rows = _rows(max(features.shape[1], points.shape[1]), PIECE_PIXELS)
        pieces = (part.split(rows) for part in (mask_embed, embed_grad, points, gradient))
        # A backward pass under autocast would round the products.
        with torch.autocast(gradient.device.type, enabled=False):
            for embed, grad, at, given in zip(*pieces, strict=True):
                logits_grad = _sampling_gradient(given, at, mask_features.shape[-2:]).flatten(1)
                if needs_embed:
                    torch.mm(logits_grad, features.T, out=grad)
                if needs_features:
                    torch.addmm(features_grad, embed.T, logits_grad, out=features_grad)
        return embed_grad, features_grad.view_as(mask_features), None


def _drawn(
    mask_embed: Float[Tensor, 'M C'],
    mask_features: Float[Tensor, 'C h w'],
    draw: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, 'M P'], Float[Tensor, 'M P 2']]:
    logits = mask_logits(mask_embed, mask_features)
    points = draw(logits)
    rows = _rows(points.shape[1], PIECE_POINTS)
    pieces = zip(logits.split(rows), points.split(rows), strict=True)
    return torch.cat([sample_features(some[:, None], at)[:, 0] for some, at in pieces]), points


def _sampling_gradient(
    gradient: Float[Tensor, 'M P'], points: Float[Tensor, 'M P 2'], size: tuple[int, int]
) -> Float[Tensor, 'M h w']:
    """Of maps of that size that were sampled at ``points``."""
    # The operator asks for the maps, on whose values their own gradient does not depend.
    maps = gradient.new_zeros(()).expand(len(gradient), 1, *size)
    bilinear = padding_of_zeros = 0
    of_maps_only = [True, False]
    grad, _ = torch.ops.aten.grid_sampler_2d_backward(
        gradient[:, None, :, None], maps, _grid(points), bilinear, padding_of_zeros,
        False, of_maps_only,
    )  # fmt: skip
    return grad[:, 0]


@torch.no_grad()
def sample_masks(
    masks: Bool[Tensor, 'N H W'], mask_idx: Int[Tensor, 'M'], points: Float[Tensor, '#M P 2']
) -> Float[Tensor, 'M P']:
    """Bilinear values of ``masks[mask_idx]`` at ``points``, in the dtype of ``points``.

    Equals ``grid_sample`` of the masks as floats, without ever holding them as floats: ground truth
    stays one byte per pixel. ``points`` of one row serve all masks.
    """
    masks = masks.contiguous()  # here once, not once a piece
    rows = _rows(points.shape[1], PIECE_POINTS)
    pieces = mask_idx.split(rows)
    at = points.split(rows) if len(points) == len(mask_idx) else [points] * len(pieces)
    return torch.cat(
        [_sample_some_masks(masks, some, where) for some, where in zip(pieces, at, strict=True)]
    )


def _sample_some_masks(
    masks: Bool[Tensor, 'N H W'], mask_idx: Int[Tensor, 'M'], points: Float[Tensor, '#M P 2']
) -> Float[Tensor, 'M P']:
    height, width = masks.shape[-2:]
    flat = masks.view(torch.uint8).flatten()
    row_start = (mask_idx * (height * width))[:, None]
    values = points.new_zeros(())
    for pixel, weight in _corners(points, (height, width)):
        values = values + flat[row_start + pixel] * weight
    return values


class PointSampler:
    """Points for the mask losses: most of them where the prediction is least certain.

    ``sample_points`` draws uniform points and may be replaced to make losses repeatable; it is
    called once for the candidates and once for the remaining uniform points of each call, which is
    a image's or, of very many masks, a piece's. Its default draws many candidates in pieces.
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

        points = mask_logits.new_empty(num_masks, config.num_points, 2)
        rows = _rows(num_candidates, PIECE_POINTS)
        pieces = (mask_logits.split(rows), points.split(rows))
        candidates = self._candidates(num_masks, num_candidates, rows, options)
        for logits, chosen, some in zip(*pieces, candidates, strict=True):
            chosen[:, :num_uncertain] = _least_certain(logits, some, num_uncertain)
        rest = self.sample_points(num_masks, config.num_points - num_uncertain, *options)
        points[:, num_uncertain:] = rest
        return points

    def _candidates(
        self, num_masks: int, num_points: int, rows: int, options: tuple[torch.device, torch.dtype]
    ) -> Iterator[Float[Tensor, 'M P 2']]:
        """In pieces of ``rows``. On the CPU uniform points are the same as drawn in one call."""
        if self.sample_points is not uniform_points:
            yield from self.sample_points(num_masks, num_points, *options).split(rows)
            return
        for start in range(0, max(num_masks, 1), rows):
            yield self.sample_points(min(rows, num_masks - start), num_points, *options)


def _least_certain(
    mask_logits: Float[Tensor, 'M h w'], candidates: Float[Tensor, 'M P 2'], number: int
) -> Float[Tensor, 'M number 2']:
    certainty = sample_features(mask_logits[:, None], candidates)[:, 0].abs()
    chosen = certainty.topk(number, dim=1, largest=False, sorted=False).indices
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
