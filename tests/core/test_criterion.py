import faulthandler
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn import functional as F

from mmseg_m2f.core.config import PointConfig
from mmseg_m2f.core.criterion import (
    MaskClassificationLoss,
    count_matched,
    count_targets,
    global_num_masks,
)
from mmseg_m2f.core.losses import ClassLoss, PointDiceLoss, PointMaskLoss
from mmseg_m2f.core.matching import HungarianMatcher
from mmseg_m2f.core.points import PointSampler
from mmseg_m2f.core.structures import MaskPrediction, MaskTarget, Match, mask_logits
from tests.conftest import TinyModel
from tests.core.test_matching import make_target

ONE = torch.tensor(1.0)
DEADLINE_SECONDS = 120


def fixed_points(num_rows, num_points, device, dtype):
    """The same points whatever the row and the image: a generator of their own, seed 0."""
    generator = torch.Generator().manual_seed(num_points)
    points = torch.rand(1, num_points, 2, generator=generator, dtype=torch.float64)
    return points.to(device, dtype).expand(num_rows, -1, -1)


def make_criterion(num_classes=4, num_points=16, **parts):
    sampler = PointSampler(PointConfig(num_points=num_points), fixed_points)
    return MaskClassificationLoss(ClassLoss(num_classes), points=sampler, **parts)


def make_inputs(num_targets, num_predictions=2, num_queries=5, dtype=torch.float32):
    """Predictions, features, targets and random matches of one image per entry."""
    batch = len(num_targets)
    predictions = [
        MaskPrediction(
            torch.randn(batch, num_queries, 5, dtype=dtype),
            torch.randn(batch, num_queries, 8, dtype=dtype),
        )
        for _ in range(num_predictions)
    ]
    targets = [make_target(n) for n in num_targets]
    matches = []
    for n in num_targets:
        pairs = [
            (torch.randperm(num_queries)[:n], torch.randperm(n)[:num_queries])
            for _ in range(num_predictions)
        ]
        matches.append(Match(*(torch.stack(index) for index in zip(*pairs, strict=True))))
    return predictions, torch.randn(batch, 8, 6, 8, dtype=dtype), targets, matches


def slow_losses(criterion, predictions, features, targets, matches):
    """Pair by pair from full masks as floats, in the official order."""
    num_masks = max(sum(len(target.labels) for target in targets), 1)
    weights = criterion.class_loss.class_weight.to(features.dtype)
    found = []
    for index, prediction in enumerate(predictions):
        nll, total, bce, dice = 0, 0, 0, 0
        for i, (target, match) in enumerate(zip(targets, matches, strict=True)):
            classes = [4] * len(prediction.class_logits[i])
            pairs = zip(match.query_idx[index].tolist(), match.target_idx[index].tolist(),
                        strict=True)  # fmt: skip
            for q, n in pairs:
                classes[q] = target.labels[n].item()
                logits = mask_logits(prediction.mask_embed[i, q : q + 1], features[i])
                grid = 2 * criterion.points(logits)[:, :, None] - 1
                z = F.grid_sample(logits[None], grid, align_corners=False).flatten()
                t = target.masks[n].to(z.dtype)[None, None]
                t = F.grid_sample(t, grid, align_corners=False).flatten()
                bce = bce + F.binary_cross_entropy_with_logits(z, t)
                s = z.sigmoid()
                dice = dice + 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)
            for q, label in enumerate(classes):
                log_probs = prediction.class_logits[i, q].log_softmax(-1)
                nll, total = nll - weights[label] * log_probs[label], total + weights[label]
        found.append((2 * nll / total, 5 * bce / num_masks, 5 * dice / num_masks))
    return found


@pytest.mark.parametrize('num_targets', [(3,), (2, 0, 4), (9, 1)], ids=str)
def test_all_terms_equal_the_slow_implementation(num_targets):
    criterion, inputs = make_criterion(), make_inputs(num_targets, dtype=torch.float64)
    terms = criterion(*inputs)
    assert len(terms) == 2
    for got, expected in zip(terms, slow_losses(criterion, *inputs), strict=True):
        for one, other in zip(got, expected, strict=True):
            assert one.item() == pytest.approx(other.item(), rel=1e-10)


def test_every_target_counts_also_empty_ones_and_those_without_a_query():
    targets = [make_target(9), make_target(0), make_target(3)]
    targets[2].masks[1:] = False
    assert count_targets(targets, []) == 12
    assert global_num_masks(12, torch.device('cpu')).item() == 12
    assert global_num_masks(0, torch.device('cpu')).item() == 1


def test_matched_targets_count_and_an_image_without_any_as_one():
    _, _, targets, matches = make_inputs((9, 0, 3, 0), num_queries=5)
    assert count_targets(targets, matches) == 12
    assert count_matched(targets, matches) == 5 + 1 + 3 + 1


def test_the_mask_losses_are_divided_by_what_is_counted():
    inputs = make_inputs((9, 0, 3), num_queries=5, dtype=torch.float64)
    official = make_criterion()(*inputs)
    theirs = make_criterion(count_masks=count_matched)(*inputs)
    for one, other in zip(official, theirs, strict=True):
        torch.testing.assert_close(other.cls, one.cls)
        torch.testing.assert_close(other.mask, one.mask * 12 / 9)
        torch.testing.assert_close(other.dice, one.dice * 12 / 9)


def test_more_targets_than_queries_divide_by_all_targets():
    predictions, features, targets, matches = make_inputs((9,), dtype=torch.float64)
    criterion = make_criterion()
    every = criterion(predictions, features, targets, matches)
    # Five queries explain five targets; without the other four only the divisor changes.
    kept = matches[0].target_idx[0]
    fewer = MaskTarget(targets[0].labels[kept], targets[0].masks[kept])
    match = Match(matches[0].query_idx[:1], torch.arange(5)[None])
    alone = criterion(predictions[:1], features, [fewer], [match])
    torch.testing.assert_close(every[0].mask, alone[0].mask * 5 / 9)
    torch.testing.assert_close(every[0].dice, alone[0].dice * 5 / 9)
    torch.testing.assert_close(every[0].cls, alone[0].cls)


def test_the_order_of_the_pairs_does_not_matter():
    predictions, features, targets, matches = make_inputs((4, 3), dtype=torch.float64)
    criterion = make_criterion()
    turned = [Match(m.query_idx.flip(1), m.target_idx.flip(1)) for m in matches]
    for one, other in zip(
        criterion(predictions, features, targets, matches),
        criterion(predictions, features, targets, turned),
        strict=True,
    ):
        torch.testing.assert_close(torch.stack(one), torch.stack(other))


def test_foreign_losses_are_called_per_prediction_with_equal_results():
    inputs, shapes = make_inputs((3, 0, 2)), []

    class Foreign(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, point_logits, point_targets, num_masks):
            shapes.append((point_logits.shape, point_targets.shape, num_masks.item()))
            return self.inner(point_logits, point_targets, num_masks)

    foreign = make_criterion(mask_loss=Foreign(PointMaskLoss()), dice_loss=Foreign(PointDiceLoss()))
    for one, other in zip(foreign(*inputs), make_criterion()(*inputs), strict=True):
        torch.testing.assert_close(torch.stack(one), torch.stack(other))
    assert shapes == [((5, 16), (5, 16), 5.0)] * 4


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_losses_are_float32_under_autocast(dtype):
    predictions, features, targets, matches = make_inputs((3, 2))
    half = [MaskPrediction(p.class_logits.to(dtype), p.mask_embed.to(dtype)) for p in predictions]
    exact = [MaskPrediction(p.class_logits.float(), p.mask_embed.float()) for p in half]
    with torch.autocast('cpu', dtype=dtype):
        got = make_criterion()(half, features, targets, matches)
    for one, other in zip(got, make_criterion()(exact, features, targets, matches), strict=True):
        assert torch.equal(torch.stack(one), torch.stack(other))


def test_gradients_reach_the_logits_through_the_points_only():
    """Finite differences in float64. The choice of the points depends on the logits too, but is
    not differentiated: the points are held fixed, as in the official code."""
    predictions, features, targets, matches = make_inputs((3, 2), 1, dtype=torch.float64)
    with torch.no_grad():
        reference = make_criterion()
        drawn = []
        criterion = make_criterion()
        draw = reference.points

        def remember(logits):
            drawn.append(draw(logits))
            return drawn[-1]

        criterion.points = remember
        criterion(predictions, features, targets, matches)
    turn = []

    def replay(_):
        turn.append(1)
        return drawn[(len(turn) - 1) % len(drawn)]

    criterion.points = replay

    def total(class_logits, mask_embed, mask_features):
        prediction = MaskPrediction(class_logits, mask_embed)
        return torch.stack(criterion([prediction], mask_features, targets, matches)[0])

    leaves = [*predictions[0], features]
    assert torch.autograd.gradcheck(total, [x.requires_grad_() for x in leaves], fast_mode=True)


def test_only_matched_queries_get_mask_gradients():
    predictions, features, targets, matches = make_inputs((3,))
    leaves = [p.mask_embed.requires_grad_() for p in predictions]
    sum(
        sum(terms) for terms in make_criterion()(predictions, features, targets, matches)
    ).backward()
    for index, leaf in enumerate(leaves):
        touched = set(leaf.grad[0].abs().sum(-1).nonzero().flatten().tolist())
        assert touched == set(matches[0].query_idx[index].tolist())


def training_loss(model, maps, targets):
    """Matching and losses of a model's predictions with fixed points, summed."""
    matcher = HungarianMatcher(num_points=64, sample_points=fixed_points)
    criterion = make_criterion(model_classes(model), num_points=32)
    predictions, mask_features = model(maps)
    matches = matcher(predictions, mask_features, targets)
    return sum(sum(terms) for terms in criterion(predictions, mask_features, targets, matches))


def model_classes(model):
    return getattr(model, 'module', model).num_classes


@pytest.mark.parametrize('num_targets', [(0, 0), (3, 0), (1, 9)], ids=str)
def test_every_parameter_gets_a_gradient_whatever_the_targets(tiny_model, num_targets):
    targets = [make_target(n, num_classes=5) for n in num_targets]
    loss = training_loss(tiny_model, tiny_model.maps(2, 8, 12), targets)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_without_targets_the_mask_terms_are_zero_and_the_class_term_says_no_object():
    predictions, features, targets, matches = make_inputs((0, 0))
    for prediction, terms in zip(
        predictions, make_criterion()(predictions, features, targets, matches), strict=True
    ):
        assert terms.mask.item() == terms.dice.item() == 0
        expected = -2 * prediction.class_logits.log_softmax(-1)[..., -1].mean()
        torch.testing.assert_close(terms.cls, expected)


def distributed_case(index):
    """Model, maps and targets that every process makes alike; ``index`` picks the GT counts."""
    torch.manual_seed(7)
    model = TinyModel().double()
    maps = model.maps(2, 8, 12)
    targets = [make_target(n, num_classes=5) for n in [(1, 5), (0, 4), (0, 0)][index]]
    return model, maps, targets


def distributed_gradients(rank):
    """One image per process: the averaged gradients of every case."""
    gradients = []
    for index in range(3):
        model, maps, targets = distributed_case(index)
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
        mine = slice(rank, rank + 1)
        training_loss(wrapped, [x[mine] for x in maps], targets[mine]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    return gradients


def one_process(rank, folder):
    """Leave the gradients in ``folder``, then wait for the end: leaving a group can hang."""
    faulthandler.dump_traceback_later(DEADLINE_SECONDS, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo',
        init_method=f'file://{folder}/rendezvous',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=DEADLINE_SECONDS / 2),
    )
    torch.save(distributed_gradients(rank), folder / f'{rank}.partial')
    (folder / f'{rank}.partial').rename(folder / f'{rank}.pt')
    time.sleep(DEADLINE_SECONDS)


def averaged_gradients(folder):
    """Return the gradients of the first of two processes; one that hangs shows where and fails."""
    processes = multiprocessing.spawn(one_process, (folder,), nprocs=2, join=False, daemon=True)
    results = [folder / '0.pt', folder / '1.pt']
    try:
        while not all(path.exists() for path in results):
            ended = processes.join(timeout=0.1)
            assert not ended
    finally:
        for process in processes.processes:
            process.kill()
    return torch.load(results[0])


def test_two_processes_equal_one(tmp_path):
    """Uneven targets, one empty process, nothing at all: no hang, and the gradients of both
    images in one process.

    The mask terms' normaliser is shared, so they agree. The class term's mean is per process by
    the official rule: its equal in one process is the average of the images' own means.
    """
    averaged = averaged_gradients(tmp_path)
    for index, gradients in enumerate(averaged):
        model, maps, targets = distributed_case(index)
        total = 0
        predictions, mask_features = model(maps)
        matcher = HungarianMatcher(num_points=64, sample_points=fixed_points)
        matches = matcher(predictions, mask_features, targets)
        criterion = make_criterion(model.num_classes, num_points=32)
        for terms in criterion(predictions, mask_features, targets, matches):
            # Per process: sum / max(mean count, 1); together: sum / max(total count, 1), and the
            # average over two processes halves the sum.
            count = sum(len(target.labels) for target in targets)
            total = total + (terms.mask + terms.dice) * (max(count, 1) / max(count / 2, 1)) / 2
        for i in range(2):
            one = slice(i, i + 1)
            single = [MaskPrediction(p.class_logits[one], p.mask_embed[one]) for p in predictions]
            for terms in criterion(single, mask_features[one], targets[one], matches[one]):
                total = total + terms.cls / 2
        total.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-9)
