import pytest
import torch
from torch.nn import functional as F

from mmseg_m2f.core import points as points_module
from mmseg_m2f.core.config import PointConfig
from mmseg_m2f.core.points import (
    PointSampler,
    per_image,
    sample_features,
    sample_logits,
    sample_masks,
    sample_pixels,
    uniform_points,
)
from mmseg_m2f.core.structures import mask_logits
from tests.core.watching import Watch

CPU = torch.device('cpu')


def test_uniform_points_come_from_the_global_generator():
    torch.manual_seed(3)
    points = uniform_points(2, 5, CPU, torch.float64)
    torch.manual_seed(3)
    assert torch.equal(points, torch.rand(2, 5, 2, dtype=torch.float64))


def test_sample_features_by_hand():
    # Columns 0, 1 of a 1 x 2 map hold 10 and 20; their centres are x = 1/4 and 3/4.
    features = torch.tensor([[[[10.0, 20.0]], [[-1.0, 1.0]]]])
    points = torch.tensor([[[0.25, 0.5], [0.5, 0.5], [0.75, 0.5], [1.0, 0.5], [1.5, 0.5]]])
    values = sample_features(features, points)
    assert values.tolist() == [[[10, 15, 20, 10, 0], [-1, 0, 1, 0.5, 0]]]


@pytest.mark.parametrize('order', [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (6, 4), (13, 21)])
def test_sample_pixels_are_the_sampled_features(size, order):
    features = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=order)
    points = 1.4 * torch.rand(50, 2, dtype=torch.float64) - 0.2  # some lie outside
    for image in features:
        [expected] = sample_features(image[None], points[None])
        got = sample_pixels(image, points)
        torch.testing.assert_close(got, expected.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize('order', [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize('like_maps', [True, False])
@pytest.mark.parametrize('batch', [1, 3])
def test_gradients_of_images_keep_the_order_of_memory(order, like_maps, batch):
    maps = torch.randn(batch, 4, 5, 6).to(memory_format=order).requires_grad_()
    images = per_image(maps)
    assert len(images) == batch
    assert all(torch.equal(one, maps[i]) for i, one in enumerate(images))
    weights = torch.randn(batch, 4, 5, 6)
    given = [
        torch.empty_like(one).copy_(weight) if like_maps else weight
        for one, weight in zip(images, weights, strict=True)
    ]
    used = slice(None) if batch == 1 else slice(1, None)  # of the first image nothing is asked
    [gradient] = torch.autograd.grad(images[used], maps, given[used])
    assert torch.equal(gradient[used], weights[used])
    assert batch == 1 or not gradient[0].any()
    assert gradient.is_contiguous(memory_format=order)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (6, 4), (13, 21)])
@pytest.mark.parametrize('num_rows', [1, 5], ids=['shared', 'own'])
def test_sample_masks_equals_grid_sample_of_floats(size, num_rows):
    masks = torch.rand(3, *size) < 0.5
    mask_idx = torch.tensor([2, 0, 0, 1, 2])
    points = 1.4 * torch.rand(num_rows, 50, 2, dtype=torch.float64) - 0.2  # some lie outside
    got = sample_masks(masks, mask_idx, points)
    grid = (2 * points - 1).expand(5, -1, -1)[:, :, None]
    expected = F.grid_sample(masks[mask_idx, None].double(), grid, align_corners=False)
    torch.testing.assert_close(got, expected[:, 0, :, 0], rtol=0, atol=1e-13)


def test_sample_masks_of_corners_and_pixel_centres():
    masks = torch.tensor([[[True, False], [False, True]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0]]])
    got = sample_masks(masks, torch.tensor([0]), points)
    assert got.tolist() == [[1, 0, 0.5, 0.25, 0.25]]


def test_sample_masks_of_a_strided_view():
    masks = (torch.rand(6, 8, 4) < 0.5).permute(2, 0, 1)[::2]
    assert not masks.is_contiguous()
    points, mask_idx = torch.rand(2, 30, 2), torch.tensor([0, 1])
    expected = sample_masks(masks.contiguous(), mask_idx, points)
    assert torch.equal(sample_masks(masks, mask_idx, points), expected)


@pytest.mark.parametrize('num_rows', [0, 1])
def test_sample_masks_of_no_mask(num_rows):
    nothing = torch.zeros(0, dtype=torch.long)
    got = sample_masks(torch.zeros(0, 4, 4, dtype=torch.bool), nothing, torch.rand(num_rows, 9, 2))
    assert got.shape == (0, 9)


class Recorder:
    """Uniform points that are remembered."""

    def __init__(self):
        self.draws = []

    def __call__(self, *args):
        self.draws.append(uniform_points(*args))
        return self.draws[-1]


def as_set(points):
    return {tuple(point) for point in points.tolist()}


def test_three_quarters_are_the_least_certain_candidates_and_the_rest_is_drawn_anew():
    recorder = Recorder()
    config = PointConfig(num_points=40, oversample_ratio=3.0, importance_ratio=0.75)
    logits = torch.randn(3, 6, 8, dtype=torch.float64)
    points = PointSampler(config, recorder)(logits)

    candidates, rest = recorder.draws
    assert candidates.shape == (3, 120, 2)
    assert rest.shape == (3, 10, 2)
    assert points.shape == (3, 40, 2)
    grid = 2 * candidates[:, :, None] - 1
    certainty = F.grid_sample(logits[:, None], grid, align_corners=False)[:, 0, :, 0].abs()
    for mask in range(3):
        least_certain = candidates[mask, certainty[mask].argsort()[:30]]
        assert as_set(points[mask, :30]) == as_set(least_certain)
        assert as_set(points[mask, 30:]) == as_set(rest[mask])


def test_the_border_between_two_sure_pixels_is_uncertain():
    def border_first(num_rows, num_points, device, dtype):
        # x = 1/2 lies between a +1 and a -1 pixel, x = 1/4 on the centre of the +1 pixel.
        return torch.tensor([[[0.5, 0.5], [0.25, 0.5]]], dtype=dtype)[:, :num_points]

    config = PointConfig(num_points=1, oversample_ratio=2.0, importance_ratio=1.0)
    sampler = PointSampler(config, border_first)
    assert sampler(torch.tensor([[[1.0, -1.0]]])).tolist() == [[[0.5, 0.5]]]


@pytest.mark.parametrize(('ratio', 'uncertain'), [(0.0, 0), (0.7, 4), (1.0, 7)])
def test_the_share_of_uncertain_points_is_rounded_down(ratio, uncertain):
    recorder = Recorder()
    config = PointConfig(num_points=7, importance_ratio=ratio)
    points = PointSampler(config, recorder)(torch.randn(2, 4, 4))
    assert points.shape == (2, 7, 2)
    assert recorder.draws[0].shape[1] == 21
    assert recorder.draws[1].shape[1] == 7 - uncertain


def test_no_masks_get_no_points():
    assert PointSampler(PointConfig(num_points=8))(torch.zeros(0, 4, 4)).shape == (0, 8, 2)


def test_points_carry_no_gradient():
    logits = torch.randn(2, 4, 4, requires_grad=True)
    assert not PointSampler(PointConfig(num_points=8))(logits).requires_grad


@pytest.fixture(params=[1, 100, 1000], ids=lambda size: f'pieces of {size}')
def small_pieces(request, monkeypatch):
    monkeypatch.setattr(points_module, 'PIECE_POINTS', request.param)
    monkeypatch.setattr(points_module, 'PIECE_PIXELS', request.param)


def sampled(num_masks, num_points, dtype):
    """The points of some logits, and the state in which the generator is left."""
    logits = torch.randn(num_masks, 6, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    torch.manual_seed(4)
    return PointSampler(PointConfig(num_points=num_points))(logits), torch.get_rng_state()


SAMPLED = [
    (*size, dtype)
    for size in [(0, 8), (1, 1), (1, 3), (7, 5), (13, 16), (9, 37)]
    for dtype in (torch.float32, torch.float64)
]
AT_ONCE = {case: sampled(*case) for case in SAMPLED}


@pytest.mark.parametrize('case', SAMPLED, ids=str)
def test_pieces_have_the_points_of_all_rows_at_once(case, small_pieces):
    for in_pieces, at_once in zip(sampled(*case), AT_ONCE[case], strict=True):
        assert torch.equal(in_pieces, at_once)


def test_points_of_a_user_are_asked_for_once_whatever_the_pieces(small_pieces):
    recorder = Recorder()
    PointSampler(PointConfig(num_points=16), recorder)(torch.randn(5, 6, 8))
    assert [tuple(draw.shape) for draw in recorder.draws] == [(5, 48, 2), (5, 4, 2)]


def test_candidates_never_exist_as_a_whole(monkeypatch):
    monkeypatch.setattr(points_module, 'PIECE_POINTS', 4 * 3 * 64)  # the candidates of four rows
    with Watch() as watch:
        points = PointSampler(PointConfig(num_points=64))(torch.randn(40, 4, 4))
    assert watch.largest == points.numel()


@pytest.mark.parametrize('num_rows', [1, 5], ids=['shared', 'own'])
def test_masks_in_pieces_have_the_values_of_all_at_once(num_rows, small_pieces, monkeypatch):
    masks, mask_idx = torch.rand(3, 13, 21) < 0.5, torch.tensor([2, 0, 0, 1, 2])
    points = torch.rand(num_rows, 50, 2)
    in_pieces = sample_masks(masks, mask_idx, points)
    monkeypatch.undo()
    assert torch.equal(in_pieces, sample_masks(masks, mask_idx, points))


def logits_problem(num_masks=7):
    """Embeddings, features and points of masks that overlap the border of the map."""
    mask_embed = torch.randn(num_masks, 3, dtype=torch.float64, requires_grad=True)
    mask_features = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    return mask_embed, mask_features, 1.2 * torch.rand(num_masks, 20, 2, dtype=torch.float64) - 0.1


@pytest.mark.parametrize('num_masks', [0, 1, 7])
@pytest.mark.parametrize('channels_last', [False, True])
def test_sampled_logits_and_gradients_are_those_of_formed_masks(
    num_masks, channels_last, small_pieces
):
    mask_embed, mask_features, points = logits_problem(num_masks)
    if channels_last:
        mask_features = mask_features.detach().permute(1, 2, 0).contiguous().permute(2, 0, 1)
        mask_features.requires_grad_()
    expected = sample_features(mask_logits(mask_embed, mask_features)[:, None], points)[:, 0]
    got, where = sample_logits(mask_embed, mask_features, lambda _: points)
    assert where is points
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    weight = torch.randn_like(expected)
    leaves = (mask_embed, mask_features)
    for one, other in zip(
        torch.autograd.grad((got * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize('rows', [1, 3, 7])
def test_logits_formed_in_pieces_are_those_of_all_at_once(rows, monkeypatch):
    mask_embed, mask_features, points = logits_problem()
    leaves = (mask_embed, mask_features)
    at_once, _ = sample_logits(*leaves, lambda _: points)
    monkeypatch.setattr(points_module, 'PIECE_LOGITS', rows * 6 * 8)
    pieces, formed = iter(points.split(rows)), []

    def draw(logits):
        formed.append(len(logits))
        return next(pieces)

    in_pieces, where = sample_logits(*leaves, draw)
    assert max(formed) == rows
    assert torch.equal(where, points)
    torch.testing.assert_close(in_pieces, at_once, rtol=0, atol=1e-13)
    for one, other in zip(
        torch.autograd.grad(in_pieces.square().sum(), leaves),
        torch.autograd.grad(at_once.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize('frozen', [0, 1], ids=['embeddings', 'features'])
def test_sampled_logits_of_what_is_frozen(frozen):
    problem = logits_problem()
    leaves, points = list(problem[:2]), problem[2]
    leaves[frozen] = leaves[frozen].detach()
    values, _ = sample_logits(*leaves, lambda _: points)
    values.square().sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[1 - frozen].grad.abs().max() > 0


def test_a_backward_pass_under_autocast_rounds_nothing():
    mask_embed, mask_features, points = (part.float() for part in logits_problem())
    leaves = [part.detach().requires_grad_() for part in (mask_embed, mask_features)]
    total = sample_logits(*leaves, lambda _: points)[0].square().sum()
    exact = torch.autograd.grad(total, leaves, retain_graph=True)
    with torch.autocast('cpu', torch.bfloat16):
        inside = torch.autograd.grad(total, leaves)
    for one, other in zip(inside, exact, strict=True):
        assert torch.equal(one, other)


def test_the_gradient_of_the_logits_never_exists_as_a_whole(monkeypatch):
    num_masks, side = 40, 16
    monkeypatch.setattr(points_module, 'PIECE_PIXELS', 4 * side**2)
    mask_embed, mask_features = torch.randn(num_masks, 3), torch.randn(3, side, side)
    points = torch.rand(num_masks, 5, 2)
    leaves = [mask_embed.requires_grad_(), mask_features.requires_grad_()]
    total = sample_logits(*leaves, lambda _: points)[0].sum()
    with Watch() as watch:
        total.backward()
    assert watch.largest == 4 * side**2
