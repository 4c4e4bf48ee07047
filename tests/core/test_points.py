import pytest
import torch
from torch.nn import functional as F

from mmseg_m2f.core import chunks
from mmseg_m2f.core.config import PointConfig
from mmseg_m2f.core.points import (
    PointSampler,
    sample_features,
    sample_logits,
    sample_masks,
    uniform_points,
)
from mmseg_m2f.core.structures import mask_logits
from tests.core.watching import Watch


def test_uniform_points_come_from_the_global_generator():
    torch.manual_seed(3)
    points = uniform_points(2, 5, torch.device('cpu'), torch.float64)
    torch.manual_seed(3)
    assert torch.equal(points, torch.rand(2, 5, 2, dtype=torch.float64))


def test_sampling_by_hand():
    # Columns 0, 1 of a 1 x 2 map hold 10 and 20; their centers are x = 1/4 and 3/4.
    features = torch.tensor([[[[10.0, 20.0]], [[-1.0, 1.0]]]])
    points = torch.tensor([[[0.25, 0.5], [0.5, 0.5], [0.75, 0.5], [1.0, 0.5], [1.5, 0.5]]])
    values = sample_features(features, points)
    assert values.tolist() == [[[10, 15, 20, 10, 0], [-1, 0, 1, 0.5, 0]]]
    masks = torch.tensor([[[True, False], [False, True]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0]]])
    assert sample_masks(masks, torch.tensor([0]), points).tolist() == [[1, 0, 0.5, 0.25, 0.25]]


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (6, 4), (13, 21)])
@pytest.mark.parametrize('num_rows', [1, 5], ids=['shared', 'own'])
@pytest.mark.parametrize('masks_per_chunk', [1, 2, 5])
def test_sample_masks_equals_grid_sample_of_floats(size, num_rows, masks_per_chunk, monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', masks_per_chunk * 8 * size[0] * size[1])
    masks = torch.rand(3, *size) < 0.5
    mask_idx = torch.tensor([2, 0, 0, 1, 2])
    points = 1.4 * torch.rand(num_rows, 50, 2, dtype=torch.float64) - 0.2  # some lie outside
    got = sample_masks(masks, mask_idx, points)
    grid = (2 * points - 1).expand(5, -1, -1)[:, :, None]
    expected = F.grid_sample(masks[mask_idx, None].double(), grid, align_corners=False)
    torch.testing.assert_close(got, expected[:, 0, :, 0], rtol=0, atol=1e-13)


def as_set(points):
    return {tuple(point) for point in points.tolist()}


@pytest.mark.parametrize(
    ('ratio', 'num_points', 'num_uncertain'), [(0.75, 40, 30), (0.0, 7, 0), (0.7, 7, 4), (1, 7, 7)]
)
def test_the_least_certain_candidates_are_kept_and_the_rest_is_drawn_anew(
    ratio, num_points, num_uncertain
):
    draws = []

    def remember(*args):
        draws.append(uniform_points(*args))
        return draws[-1]

    config = PointConfig(num_points=num_points, oversample_ratio=3.0, importance_ratio=float(ratio))
    logits = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    points = PointSampler(config, remember)(logits)
    assert not points.requires_grad
    candidates, rest = draws
    assert candidates.shape == (3, 3 * num_points, 2)
    assert rest.shape == (3, num_points - num_uncertain, 2)
    grid = 2 * candidates[:, :, None] - 1
    certainty = F.grid_sample(logits[:, None], grid, align_corners=False)[:, 0, :, 0].abs()
    for mask in range(3):
        least_certain = candidates[mask, certainty[mask].argsort()[:num_uncertain]]
        assert as_set(points[mask, :num_uncertain]) == as_set(least_certain)
        assert as_set(points[mask, num_uncertain:]) == as_set(rest[mask])


def test_the_border_between_two_sure_pixels_is_uncertain():
    def border_first(num_rows, num_points, device, dtype):
        # x = 1/2 lies between a +1 and a -1 pixel, x = 1/4 on the center of the +1 pixel.
        return torch.tensor([[[0.5, 0.5], [0.25, 0.5]]], dtype=dtype)[:, :num_points]

    config = PointConfig(num_points=1, oversample_ratio=2.0, importance_ratio=1.0)
    sampler = PointSampler(config, border_first)
    assert sampler(torch.tensor([[[1.0, -1.0]]])).tolist() == [[[0.5, 0.5]]]


@pytest.mark.parametrize('num_masks', [0, 1, 7])
@pytest.mark.parametrize('masks_per_chunk', [1, 3, 7])
def test_sampled_logits_and_gradients_are_those_of_formed_masks(
    num_masks, masks_per_chunk, monkeypatch
):
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', masks_per_chunk * 8 * 6 * 8)
    mask_embed = torch.randn(num_masks, 3, dtype=torch.float64, requires_grad=True)
    mask_features = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    points = 1.2 * torch.rand(num_masks, 20, 2, dtype=torch.float64) - 0.1  # some lie outside
    formed = mask_logits(mask_embed, mask_features)
    expected = sample_features(formed[:, None], points)[:, 0]
    parts, seen = iter(points.split(masks_per_chunk)), []

    def draw(logits):
        assert not logits.requires_grad
        seen.append(logits)
        return next(parts)

    got, where = sample_logits(mask_embed, mask_features, draw)
    assert torch.equal(where, points)
    torch.testing.assert_close(torch.cat(seen), formed.detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    weight = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((got * weight).sum(), (mask_embed, mask_features)),
        torch.autograd.grad((expected * weight).sum(), (mask_embed, mask_features)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_hundreds_of_masks_or_their_candidates_never_exist_together(monkeypatch):
    """The largest tensor of forward and backward pass is a chunk's, whatever is sampled."""
    side = 16
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 4 * 4 * side**2)
    mask_embed = torch.randn(40, 3, requires_grad=True)
    mask_features = torch.randn(3, side, side, requires_grad=True)
    masks, mask_idx = torch.rand(3, side, side) < 0.5, torch.randint(3, (40,))
    with Watch() as watch:
        values, points = sample_logits(
            mask_embed, mask_features, PointSampler(PointConfig(num_points=5))
        )
        (values - sample_masks(masks, mask_idx, points)).square().sum().backward()
    assert watch.largest == 4 * side**2
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', 4 * 4 * 2 * 3 * 64)  # the candidates of four masks
    with Watch() as watch:
        points = PointSampler(PointConfig(num_points=64))(torch.randn(40, 4, 4))
    assert watch.largest == points.numel()
