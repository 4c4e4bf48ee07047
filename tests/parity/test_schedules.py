"""Learning rates of the published rows against the official formulas, iteration by iteration.

The formulas: detectron2's multi-step schedule, and the one of its project DeepLab, which is called
``WarmupPolyLR``. Both multiply by a warm-up that the official configurations set to do nothing.
"""

from bisect import bisect_right

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from tests.configs.rows import ROWS, load, parse

# Rates at the start: of the head and of the backbone.
START = (1e-4, 1e-5)
WARMUP_FACTOR, WARMUP_ITERS = 1.0, 10
# Data set -> number of iterations. COCO: 50 times 7375 of 16 images, 100 times with Swin-L.
POLY = {'ade20k': 160_000, 'cityscapes': 90_000, 'mapillary': 300_000}
STEP = {'coco': 368_750, 'coco swin-l': 737_500}
# A tenth at 8/9, a hundredth at 26/27.
MILESTONES = {368_750: (327_778, 355_092), 737_500: (655_556, 710_184)}
EVERY = {**POLY, **STEP}


def official_factor(name, iteration):
    """Return the factor of the starting rate in this iteration, counted from 0."""
    share = min(iteration / WARMUP_ITERS, 1.0)
    warmup = WARMUP_FACTOR * (1 - share) + share
    if name in POLY:
        return warmup * (1 - iteration / POLY[name]) ** 0.9
    return warmup * 0.1 ** bisect_right(MILESTONES[STEP[name]], iteration)


def schedule_of(row):
    return 'coco swin-l' if '_swin-l_coco' in row else parse(row).dataset


OFFICIAL = {
    name: [row for row in ROWS if schedule_of(row) == name and not parse(row).is_mmseg]
    for name in EVERY
}


@pytest.mark.parametrize('name', EVERY)
def test_rates_of_a_run(name):
    """The rates of both groups, from the row's schedulers as a run steps them."""
    cfg, last = load(OFFICIAL[name][0]), EVERY[name] - 1
    assert cfg.train_cfg.max_iters == EVERY[name]
    iterations = {*range(12), EVERY[name] // 2, last - 1, last}
    for milestone in MILESTONES.get(EVERY[name], ()):
        iterations |= {milestone - 1, milestone, milestone + 1}
    groups = [{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in START]
    optimizer = torch.optim.AdamW(groups, lr=START[0])
    wrapper = OptimWrapper(optimizer)
    schedulers = [
        PARAM_SCHEDULERS.build(settings, default_args={'optimizer': wrapper})
        for settings in cfg.param_scheduler
    ]
    wrapper.step()  # without a gradient: else the first step of the schedule would warn
    for iteration in range(EVERY[name]):
        if iteration in iterations:
            expected = [lr * official_factor(name, iteration) for lr in START]
            found = [group['lr'] for group in optimizer.param_groups]
            assert found == pytest.approx(expected, rel=1e-9), iteration
        for scheduler in schedulers:
            scheduler.step()


def test_numbers_by_hand():
    """So that the formulas above are not taken on trust."""
    assert official_factor('ade20k', 0) == official_factor('coco', 0) == 1
    # Half way: 0.5 ** 0.9. The last of 160000: (1 / 160000) ** 0.9, not 0.
    assert official_factor('ade20k', 80_000) == pytest.approx(0.5358867)
    assert official_factor('ade20k', 159_999) == pytest.approx(2.071534e-05)
    factors = [official_factor('coco', i) for i in (327_777, 327_778, 355_091, 355_092, 368_749)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    for iterations, milestones in MILESTONES.items():
        expected = iterations * 8 / 9, iterations * 26 / 27
        assert milestones == pytest.approx(expected, abs=2)


def test_rows_of_a_data_set_share_the_schedule():
    """Every official row is one of them."""
    assert sum(map(len, OFFICIAL.values())) == sum(not parse(row).is_mmseg for row in ROWS)
    for first, *others in OFFICIAL.values():
        assert others
        for key in ('param_scheduler', 'train_cfg'):
            assert all(load(row)[key] == load(first)[key] for row in others)
