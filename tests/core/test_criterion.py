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
from mmseg_m2f.core.structures import MaskPrediction, Match, mask_logits
from tests.conftest import TinyModel
from tests.core.builders import fixed_points, make_inputs, make_target

DEADLINE_SECONDS = 120


def make_criterion(num_classes=4, num_points=16, **parts):
    sampler = PointSampler(PointConfig(num_points=num_points), fixed_points)
    return MaskClassificationLoss(ClassLoss(num_classes), points=sampler, **parts)


def matched_inputs(num_targets, num_predictions=2, dtype=torch.float32):
    """The inputs with random matches, in any order."""
    matches = []
    for n in num_targets:
        pairs = [(torch.randperm(5)[:n], torch.randperm(n)[:5]) for _ in range(num_predictions)]
        matches.append(Match(*(torch.stack(index) for index in zip(*pairs, strict=True))))
    return *make_inputs(num_targets, num_predictions, dtype), matches


def slow_losses(criterion, predictions, features, targets, matches):
    """Pair by pair from full masks as floats, in the official order."""
    num_masks = max(sum(len(target.labels) for target in targets), 1)
    weights = criterion.class_loss.class_weight.to(features.dtype)

    def read(maps, grid):
        return F.grid_sample(maps[None], grid, align_corners=False).flatten()

    found = []
    for index, prediction in enumerate(predictions):
        nll, total, bce, dice = torch.zeros(4, dtype=features.dtype)
        for i, (target, match) in enumerate(zip(targets, matches, strict=True)):
            classes = [4] * 5
            for q, n in zip(*(x[index].tolist() for x in match), strict=True):
                classes[q] = target.labels[n].item()
                logits = mask_logits(prediction.mask_embed[i, q : q + 1], features[i])
                grid = 2 * criterion.points(logits)[:, :, None] - 1
                z, t = read(logits, grid), read(target.masks[n : n + 1].to(logits.dtype), grid)
                bce = bce + F.binary_cross_entropy_with_logits(z, t)
                s = z.sigmoid()
                dice = dice + 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)
            for q, label in enumerate(classes):
                log_probs = prediction.class_logits[i, q].log_softmax(-1)
                nll, total = nll - weights[label] * log_probs[label], total + weights[label]
        found.append((2 * nll / total, 5 * bce / num_masks, 5 * dice / num_masks))
    return found


@pytest.mark.parametrize('num_targets', [(3,), (2, 0, 4), (9, 1), (0, 0)], ids=str)
def test_all_terms_equal_the_slow_implementation(num_targets):
    criterion, inputs = make_criterion(), matched_inputs(num_targets, dtype=torch.float64)
    terms = criterion(*inputs)
    assert len(terms) == 2
    for got, expected in zip(terms, slow_losses(criterion, *inputs), strict=True):
        for one, other in zip(got, expected, strict=True):
            assert one.item() == pytest.approx(other.item(), rel=1e-10)


def test_every_target_counts_also_empty_ones_and_those_without_a_query():
    *inputs, targets, matches = matched_inputs((9, 0, 3, 0), dtype=torch.float64)
    targets[2].masks[1:] = False
    assert count_targets(targets, matches) == 12
    # Of five queries at most five are matched; an image without any counts as one.
    assert count_matched(targets, matches) == 5 + 1 + 3 + 1
    assert global_num_masks(12, torch.device('cpu')).item() == 12
    assert global_num_masks(0, torch.device('cpu')).item() == 1
    official = make_criterion()(*inputs, targets, matches)
    theirs = make_criterion(count_masks=count_matched)(*inputs, targets, matches)
    for one, other in zip(official, theirs, strict=True):
        torch.testing.assert_close(other.cls, one.cls)
        torch.testing.assert_close(other.mask, one.mask * 12 / 10)
        torch.testing.assert_close(other.dice, one.dice * 12 / 10)


def test_foreign_losses_are_called_per_prediction_with_equal_results():
    inputs, shapes = matched_inputs((3, 0, 2)), []

    def foreign(loss):
        def call(point_logits, point_targets, num_masks):
            shapes.append((point_logits.shape, point_targets.shape, num_masks.item()))
            return loss(point_logits, point_targets, num_masks)

        return call

    parts = {'mask_loss': foreign(PointMaskLoss()), 'dice_loss': foreign(PointDiceLoss())}
    for one, other in zip(make_criterion(**parts)(*inputs), make_criterion()(*inputs), strict=True):
        torch.testing.assert_close(torch.stack(one), torch.stack(other))
    assert shapes == [((5, 16), (5, 16), 5.0)] * 4


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_losses_are_float32_under_autocast(dtype):
    predictions, *others = matched_inputs((3, 2))
    half = [MaskPrediction(*(x.to(dtype) for x in p)) for p in predictions]
    exact = [MaskPrediction(*(x.float() for x in p)) for p in half]
    with torch.autocast('cpu', dtype=dtype):
        got = make_criterion()(half, *others)
    for one, other in zip(got, make_criterion()(exact, *others), strict=True):
        assert torch.equal(torch.stack(one), torch.stack(other))


def test_gradients_reach_the_logits_through_the_points_only():
    """Finite differences in float64. The choice of the points depends on the logits too, but is
    not differentiated: the points are held fixed, as in the official code."""
    predictions, features, *truth = matched_inputs((3, 2), 1, torch.float64)
    criterion = make_criterion()
    criterion.points = lambda logits: fixed_points(len(logits), 16, logits.device, logits.dtype)

    def total(class_logits, mask_embed, mask_features):
        prediction = MaskPrediction(class_logits, mask_embed)
        return torch.stack(criterion([prediction], mask_features, *truth)[0])

    leaves = [x.requires_grad_() for x in (*predictions[0], features)]
    assert torch.autograd.gradcheck(total, leaves, fast_mode=True)


MATCHER = HungarianMatcher(num_points=64, sample_points=fixed_points)
CRITERION = make_criterion(TinyModel.num_classes, num_points=32)


def training_loss(model, maps, targets):
    predictions, features = model(maps)
    matches = MATCHER(predictions, features, targets)
    return sum(sum(terms) for terms in CRITERION(predictions, features, targets, matches))


@pytest.mark.parametrize('num_targets', [(0, 0), (3, 0), (1, 9)], ids=str)
def test_every_parameter_gets_a_gradient_whatever_the_targets(tiny_model, num_targets):
    targets = [make_target(n, num_classes=5) for n in num_targets]
    loss = training_loss(tiny_model, tiny_model.maps(2, 8, 12), targets)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


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

    The mask terms' normalizer is shared, so they agree. The class term's mean is per process by
    the official rule: its equal in one process is the average of the images' own means.
    """
    averaged = averaged_gradients(tmp_path)
    for index, gradients in enumerate(averaged):
        model, maps, targets = distributed_case(index)
        total = 0
        predictions, features = model(maps)
        matches = MATCHER(predictions, features, targets)
        for terms in CRITERION(predictions, features, targets, matches):
            # Per process: sum / max(mean count, 1); together: sum / max(total count, 1), and the
            # average over two processes halves the sum.
            count = sum(len(target.labels) for target in targets)
            total = total + (terms.mask + terms.dice) * (max(count, 1) / max(count / 2, 1)) / 2
        for i in range(2):
            one = slice(i, i + 1)
            single = [MaskPrediction(p.class_logits[one], p.mask_embed[one]) for p in predictions]
            for terms in CRITERION(single, features[one], targets[one], matches[one]):
                total = total + terms.cls / 2
        total.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-9)
