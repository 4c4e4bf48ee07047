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
from mmseg_m2f.core.structures import MaskPrediction, MaskTarget, mask_logits


class FixedPoints:
    """The same points for every row, and a count of the calls."""

    def __init__(self, num_points=64):
        self.points = torch.rand(1, num_points, 2, dtype=torch.float64)
        self.calls = 0

    def __call__(self, num_rows, num_points, device, dtype):
        self.calls += 1
        return self.points[:, :num_points].to(device, dtype).expand(num_rows, -1, -1)


def make_predictions(num_predictions=3, batch=2, num_queries=5, num_classes=4, dtype=torch.float32):
    return [
        MaskPrediction(
            torch.randn(batch, num_queries, num_classes + 1, dtype=dtype),
            torch.randn(batch, num_queries, 8, dtype=dtype),
        )
        for _ in range(num_predictions)
    ]


def make_target(num_targets, num_classes=4, size=(24, 32)):
    return MaskTarget(
        torch.randint(num_classes, (num_targets,)), torch.rand(num_targets, *size) < 0.5
    )


def make_features(batch=2, dtype=torch.float32):
    return torch.randn(batch, 8, 6, 8, dtype=dtype)


def pairs(match, prediction):
    return list(
        zip(
            match.query_idx[prediction].tolist(), match.target_idx[prediction].tolist(), strict=True
        )
    )


def two_by_two():
    """Two queries, two channels: query 0 covers the left half, query 1 the right half."""
    features = torch.tensor([[[[8.0, -8.0]], [[-8.0, 8.0]]]])  # (1, 2, 1, 2)
    prediction = MaskPrediction(torch.zeros(1, 2, 3), torch.eye(2)[None])
    left = torch.tensor([[True, False]])
    return features, prediction, left


def test_masks_decide_by_hand():
    features, prediction, left = two_by_two()
    target = MaskTarget(torch.tensor([0, 0]), torch.stack([~left, left]))
    match = HungarianMatcher(num_points=256)([prediction], features, [target])[0]
    assert pairs(match, 0) == [(0, 1), (1, 0)]


def test_classes_decide_where_masks_are_equal():
    features, prediction, left = two_by_two()
    class_logits = torch.tensor([[[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]]])
    prediction = MaskPrediction(class_logits, torch.zeros(1, 2, 2))
    target = MaskTarget(torch.tensor([0, 1]), torch.stack([left, left]))
    match = HungarianMatcher(num_points=16)([prediction], features, [target])[0]
    assert pairs(match, 0) == [(0, 1), (1, 0)]


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
    mask, dice = PointMaskCost(1.0)(*args), PointDiceCost(1.0)(*args)
    for q in range(5):
        for n in range(3):
            bce = F.binary_cross_entropy_with_logits(logits[q], targets[n])
            probs = logits[q].sigmoid()
            overlap = (probs * targets[n]).sum()
            ratio = (2 * overlap + 1) / (probs.sum() + targets[n].sum() + 1)
            assert mask[q, n].item() == pytest.approx(bce.item(), rel=1e-12)
            assert dice[q, n].item() == pytest.approx(1 - ratio.item(), rel=1e-12)


def brute_force_matches(matcher, predictions, features, targets):
    """Prediction by prediction, image by image, from full-size mask logits."""
    points = matcher.sample_points(1, matcher.num_points, features.device, features.dtype)
    grid = 2 * points[:, :, None] - 1

    def read(maps):
        return F.grid_sample(maps[None], grid, align_corners=False)[0, :, :, 0]

    found = []
    for i, target in enumerate(targets):
        labels, at_points = target.labels, read(target.masks.to(features.dtype))
        per_prediction = []
        for class_logits, embed in predictions:
            logits = read(mask_logits(embed[i], features[i]))
            probs = class_logits[i].softmax(-1)
            cost = torch.zeros(len(logits), len(labels), dtype=features.dtype)
            for q, z in enumerate(logits):
                for n, t in enumerate(at_points):
                    bce = F.binary_cross_entropy_with_logits(z, t)
                    s = z.sigmoid()
                    dice = 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)
                    cost[q, n] = 5 * bce - 2 * probs[q, labels[n]] + 5 * dice
            per_prediction.append(np.stack(linear_sum_assignment(cost.numpy())).T.tolist())
        found.append(per_prediction)
    return found


def as_lists(matches):
    return [torch.stack([match.query_idx, match.target_idx], dim=-1).tolist() for match in matches]


@pytest.mark.parametrize('points', ['shared', 'per_prediction'])
def test_matches_equal_brute_force(points):
    matcher = HungarianMatcher(num_points=64, points=points, sample_points=FixedPoints())
    predictions = make_predictions(dtype=torch.float64)
    features = make_features(dtype=torch.float64)
    targets = [make_target(3), make_target(7)]  # the second has more targets than queries
    matches = matcher(predictions, features, targets)
    assert as_lists(matches) == brute_force_matches(matcher, predictions, features, targets)


@pytest.mark.parametrize('num_targets', [(0, 0), (0, 2), (1, 2), (5, 2), (9, 2)], ids=str)
def test_there_are_as_many_pairs_as_the_fewer_of_queries_and_targets(num_targets):
    targets = [make_target(number) for number in num_targets]
    matches = HungarianMatcher(num_points=32)(make_predictions(), make_features(), targets)
    for match, number in zip(matches, num_targets, strict=True):
        for index in match:
            assert index.shape == (3, min(5, number))
            assert index.dtype == torch.int64
            assert all(len(set(row)) == len(row) for row in index.tolist())


def test_permuting_queries_and_targets_permutes_the_matches():
    matcher = HungarianMatcher(num_points=64, sample_points=FixedPoints())
    features, target = make_features(1), make_target(4)
    predictions = make_predictions(batch=1)
    queries, order = torch.randperm(5), torch.randperm(4)
    shuffled = [MaskPrediction(p.class_logits[:, queries], p.mask_embed[:, queries])
                for p in predictions]  # fmt: skip
    before = matcher(predictions, features, [target])[0]
    after = matcher(shuffled, features, [MaskTarget(target.labels[order], target.masks[order])])[0]
    for prediction in range(3):
        back = {(queries[q].item(), order[n].item()) for q, n in pairs(after, prediction)}
        assert back == set(pairs(before, prediction))


def test_a_batch_equals_its_images_one_by_one():
    matcher = HungarianMatcher(num_points=64, sample_points=FixedPoints())
    predictions, features = make_predictions(batch=3), make_features(3)
    targets = [make_target(4), make_target(0), make_target(2)]
    together = as_lists(matcher(predictions, features, targets))
    for i, target in enumerate(targets):
        one = slice(i, i + 1)
        single = [MaskPrediction(p.class_logits[one], p.mask_embed[one]) for p in predictions]
        assert as_lists(matcher(single, features[one], [target])) == [together[i]]


def test_points_are_drawn_once_per_image_or_once_per_prediction():
    rows = []

    def sample(num_rows, num_points, device, dtype):
        rows.append(num_rows)
        return torch.rand(num_rows, num_points, 2, device=device, dtype=dtype)

    targets = [make_target(2), make_target(3)]
    for points, expected in (('shared', [1, 1]), ('per_prediction', [3, 3])):
        rows.clear()
        matcher = HungarianMatcher(num_points=16, points=points, sample_points=sample)
        matcher(make_predictions(), make_features(), targets)
        assert rows == expected


def test_shared_and_per_prediction_agree_on_equal_points():
    sample = FixedPoints()
    inputs = make_predictions(), make_features(), [make_target(3), make_target(6)]
    shared = HungarianMatcher(num_points=64, sample_points=sample)(*inputs)
    own = HungarianMatcher(num_points=64, points='per_prediction', sample_points=sample)(*inputs)
    assert as_lists(shared) == as_lists(own)


def test_a_foreign_cost_takes_the_path_by_prediction_with_equal_results():
    trio = ClassCost(), PointMaskCost(), PointDiceCost()
    shapes = []

    def foreign(class_logits, point_logits, labels, point_targets):
        shapes.append((class_logits.shape, point_logits.shape, point_targets.shape))
        return trio[1](class_logits, point_logits, labels, point_targets)

    sample = FixedPoints()
    inputs = make_predictions(), make_features(), [make_target(3), make_target(6)]
    batched = HungarianMatcher(trio, num_points=64, sample_points=sample)
    looped = HungarianMatcher([trio[0], foreign, trio[2]], num_points=64, sample_points=sample)
    assert batched.is_row_wise
    assert not looped.is_row_wise
    assert as_lists(looped(*inputs)) == as_lists(batched(*inputs))
    # A foreign cost sees one prediction of one image at a time, as its contract says.
    assert shapes == [((5, 5), (5, 64), (n, 64)) for n in (3, 3, 3, 6, 6, 6)]


def test_infinite_costs_are_clamped_and_matching_goes_on():
    prediction = make_predictions(1, 1)[0]
    prediction.class_logits[0, :, 1] = -math.inf  # a probability of zero
    match = HungarianMatcher(num_points=8)([prediction], make_features(1), [make_target(2)])[0]
    assert match.query_idx.shape == (1, 2)

    def impossible(class_logits, point_logits, labels, point_targets):
        cost = torch.zeros(len(class_logits), len(labels))
        cost[0], cost[1, 0] = math.inf, -math.inf
        return cost

    matcher = HungarianMatcher([impossible], num_points=8)
    match = matcher(make_predictions(1, 1), make_features(1), [make_target(2)])[0]
    assert 0 not in match.query_idx
    assert (1, 0) in pairs(match, 0)


@pytest.mark.parametrize('field', ['class_logits', 'mask_embed'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_what_cannot_be_matched_names_prediction_and_image(field, value):
    predictions = make_predictions()
    getattr(predictions[2], field)[1, 3, 0] = value
    with pytest.raises(
        NonFinitePredictionError,
        match=r'prediction 2 of image 1 .*NaN or infinity.*learning rate',
    ) as raised:
        HungarianMatcher(num_points=8)(
            predictions, make_features(), [make_target(2), make_target(3)]
        )
    assert (raised.value.prediction, raised.value.image) == (2, 1)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_costs_neither_overflow_nor_change_the_matches(dtype):
    """Logits of -20 against an all-ones mask cost 20 per point; summed over 12 544 points in
    float16 that is beyond 65 504."""
    features = torch.ones(1, 8, 6, 8)
    embed = torch.linspace(-20, -19, 5)[None, :, None].expand(-1, -1, 8) / 8
    target = MaskTarget(torch.tensor([0, 1]), torch.ones(2, 24, 32, dtype=torch.bool))
    class_logits = torch.randn(1, 5, 5).to(dtype)
    seen = []

    def spy(*args):
        seen.append(PointMaskCost()(*args))
        return seen[-1]

    matcher = HungarianMatcher(
        [ClassCost(), spy, PointDiceCost()], sample_points=FixedPoints(12544)
    )
    half = MaskPrediction(class_logits, embed.to(dtype))
    exact = MaskPrediction(class_logits.float(), embed.to(dtype).float())
    with torch.autocast('cpu', dtype=dtype):
        match = matcher([half], features.to(dtype), [target])
    assert as_lists(match) == as_lists(matcher([exact], features, [target]))
    assert seen[0].dtype == torch.float32
    assert seen[0].isfinite().all()
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

    monkeypatch.setattr(torch.Tensor, 'cpu', cpu)
    for name in ('item', 'tolist', '__bool__', '__int__', '__float__'):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    targets = [make_target(3), make_target(0)]
    HungarianMatcher(num_points=16, points=points)(make_predictions(), make_features(), targets)
    assert copies == [(3 * 5 * 3,)]


def test_matching_builds_no_graph():
    class_logits = torch.randn(1, 5, 5, requires_grad=True)

    def check(class_logits, point_logits, labels, point_targets):
        assert not class_logits.requires_grad
        return class_logits.new_zeros(len(class_logits), len(labels))

    prediction = MaskPrediction(class_logits, torch.randn(1, 5, 8, requires_grad=True))
    HungarianMatcher([check], num_points=8)([prediction], make_features(1), [make_target(2)])


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"points must be one of \('shared', .*got 'random'"):
        HungarianMatcher(points='random')
    with pytest.raises(ValueError, match='num_points must be positive, got 0'):
        HungarianMatcher(num_points=0)
