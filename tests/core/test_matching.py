import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from mmseg_m2f.core.matching import (
    ClassCost,
    HungarianMatcher,
    NonFinitePredictionError,
    PointDiceCost,
    PointMaskCost,
)
from mmseg_m2f.core.points import uniform_points
from mmseg_m2f.core.structures import MaskPrediction, MaskTarget, mask_logits
from tests.core.builders import fixed_points, make_inputs, pairwise_losses


def as_lists(matches):
    return [torch.stack([match.query_idx, match.target_idx], dim=-1).tolist() for match in matches]


def test_costs_by_hand():
    # Two queries, one target that covers the first of two points.
    class_logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0, -math.inf]])
    point_logits = torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)]])
    args = class_logits, point_logits, torch.tensor([0]), torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(ClassCost(2.0)(*args), torch.tensor([[-2 / 4], [-2 * 3 / 5]]))
    expected = torch.tensor([[math.log(2)], [math.log(4 / 3)]])
    torch.testing.assert_close(PointMaskCost(5.0)(*args), 5 * expected)
    # Query 0: s = (1/2, 1/2), 1 - (2 * 1/2 + 1) / (1 + 1 + 1). Query 1: s = (3/4, 1/4).
    expected = torch.tensor([[1 - 2 / 3], [1 - 2.5 / 3]])
    torch.testing.assert_close(PointDiceCost(5.0)(*args), 5 * expected)


def test_mask_costs_equal_the_pairwise_losses():
    logits, targets = torch.randn(5, 40, dtype=torch.float64), torch.rand(3, 40).double()
    args = torch.zeros(5, 2, dtype=torch.float64), logits, torch.zeros(3).long(), targets
    bce, dice = pairwise_losses(logits, targets)
    torch.testing.assert_close(PointMaskCost(1.0)(*args), bce, rtol=1e-12, atol=0)
    torch.testing.assert_close(PointDiceCost(1.0)(*args), dice, rtol=1e-12, atol=0)


def brute_force_matches(predictions, features, targets):
    """Prediction by prediction, image by image, from full-size mask logits."""
    grid = 2 * fixed_points(1, 64, features.device, features.dtype)[:, :, None] - 1

    def read(maps):
        return F.grid_sample(maps[None], grid, align_corners=False)[0, :, :, 0]

    found = []
    for i, target in enumerate(targets):
        at_points = read(target.masks.to(features.dtype))
        per_prediction = []
        for class_logits, embed in predictions:
            bce, dice = pairwise_losses(read(mask_logits(embed[i], features[i])), at_points)
            probs = class_logits[i].softmax(-1)[:, target.labels]
            cost = 5 * bce - 2 * probs + 5 * dice
            per_prediction.append(np.stack(linear_sum_assignment(cost.numpy())).T.tolist())
        found.append(per_prediction)
    return found


@pytest.mark.parametrize('points', ['shared', 'per_prediction'])
@pytest.mark.parametrize('num_targets', [(3, 7, 0), (0, 0)], ids=str)  # of five queries
def test_matches_equal_brute_force(points, num_targets):
    matcher = HungarianMatcher(num_points=64, points=points, sample_points=fixed_points)
    inputs = make_inputs(num_targets, dtype=torch.float64)
    assert as_lists(matcher(*inputs)) == brute_force_matches(*inputs)


@pytest.mark.parametrize(('points', 'rows'), [('shared', 1), ('per_prediction', 3)])
def test_points_are_drawn_once_per_image_or_once_per_prediction(points, rows):
    drawn = []

    def sample(*args):
        drawn.append(args[0])
        return uniform_points(*args)

    matcher = HungarianMatcher(num_points=16, points=points, sample_points=sample)
    matcher(*make_inputs((2, 0, 3)))
    assert drawn == [rows, rows]


@pytest.mark.parametrize('points', ['shared', 'per_prediction'])
def test_a_foreign_cost_is_called_per_prediction_and_without_a_graph(points):
    predictions, features, targets = make_inputs((3, 6))
    predictions = [MaskPrediction(*(x.requires_grad_() for x in p)) for p in predictions]
    shapes = []

    def foreign(class_logits, point_logits, labels, point_targets):
        assert not class_logits.requires_grad
        assert not point_logits.requires_grad
        shapes.append((class_logits.shape, point_logits.shape, point_targets.shape))
        return PointMaskCost()(class_logits, point_logits, labels, point_targets)

    trio = ClassCost(), foreign, PointDiceCost()
    looped = HungarianMatcher(trio, 64, points, fixed_points)
    batched = HungarianMatcher(None, 64, points, fixed_points)
    assert batched.is_row_wise
    assert not looped.is_row_wise
    inputs = predictions, features, targets
    assert as_lists(looped(*inputs)) == as_lists(batched(*inputs))
    assert shapes == [((5, 5), (5, 64), (n, 64)) for n in (3, 3, 3, 6, 6, 6)]


def test_infinite_costs_are_clamped_and_matching_goes_on():
    inputs = make_inputs((2,), 1)
    inputs[0][0].class_logits[0, :, 1] = -math.inf  # a probability of zero
    assert HungarianMatcher(num_points=8)(*inputs)[0].query_idx.shape == (1, 2)

    def impossible(class_logits, point_logits, labels, point_targets):
        cost = torch.zeros(len(class_logits), len(labels))
        cost[0], cost[1, 0] = math.inf, -math.inf
        return cost

    [[pairs]] = as_lists(HungarianMatcher([impossible], num_points=8)(*inputs))
    assert [1, 0] in pairs
    assert 0 not in [query for query, _ in pairs]


@pytest.mark.parametrize('field', ['class_logits', 'mask_embed'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_prediction_that_cannot_be_matched_is_named_with_its_image(field, value):
    inputs = make_inputs((2, 3))
    getattr(inputs[0][2], field)[1, 3, 0] = value
    message = r'prediction 2 of image 1 .*NaN or infinity.*learning rate'
    with pytest.raises(NonFinitePredictionError, match=message) as raised:
        HungarianMatcher(num_points=8)(*inputs)
    assert (raised.value.prediction, raised.value.image) == (2, 1)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_costs_neither_overflow_nor_change_the_matches(dtype):
    """Logits of -20 against an all-ones mask cost 20 per point; summed over 12 544 points in
    float16 that is beyond 65 504."""
    features = torch.ones(1, 8, 6, 8)
    embed = torch.linspace(-20, -19, 5)[None, :, None].expand(-1, -1, 8) / 8
    target = MaskTarget(torch.tensor([0, 1]), torch.ones(2, 24, 32, dtype=torch.bool))
    seen = []

    def spy(*args):
        seen.append(PointMaskCost()(*args))
        return seen[-1]

    matcher = HungarianMatcher([ClassCost(), spy, PointDiceCost()], sample_points=fixed_points)
    half = MaskPrediction(torch.randn(1, 5, 5).to(dtype), embed.to(dtype))
    exact = MaskPrediction(*(x.float() for x in half))
    with torch.autocast('cpu', dtype=dtype):
        matches = matcher([half], features.to(dtype), [target])
    assert as_lists(matches) == as_lists(matcher([exact], features, [target]))
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-6, atol=0)
    # The border of the image is half outside the mask, so not every point costs 20.
    assert 5 * 18 < seen[0].max() <= 5 * 20


@pytest.mark.parametrize('points', ['shared', 'per_prediction'])
def test_one_device_to_host_copy_per_step(monkeypatch, points):
    copies, original = [], torch.Tensor.cpu

    def cpu(tensor, *args, **kwargs):
        copies.append(tensor.shape)
        return original(tensor, *args, **kwargs)

    def forbidden(*_):
        raise AssertionError('a hidden device-to-host copy')

    inputs = make_inputs((3, 0))
    monkeypatch.setattr(torch.Tensor, 'cpu', cpu)
    for name in ('item', 'tolist', '__bool__', '__int__', '__float__'):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    HungarianMatcher(num_points=16, points=points)(*inputs)
    assert copies == [(3 * 5 * 3,)]


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"points must be one of \('shared', .*got 'random'"):
        HungarianMatcher(points='random')
    with pytest.raises(ValueError, match='num_points must be positive, got 0'):
        HungarianMatcher(num_points=0)
