"""Learning rates of the published rows against the official formulas, iteration by iteration.

The formulas: detectron2's multi-step schedule, and the one of its project DeepLab, which is called
``WarmupPolyLR``. Both multiply by a warm-up that the official configurations set to do nothing.
"""

import json
from bisect import bisect_right

import pytest
import torch
from mmengine import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from tests.configs.rows import ROWS, load, parse

# Rates at the start: of the head and of the backbone.
START = (1e-4, 1e-5)
WARMUP_FACTOR, WARMUP_ITERS = 1.0, 10

# Data set (with Swin-L's own schedule on COCO) -> number of iterations.
POLY = {'ade20k': 160_000, 'cityscapes': 90_000, 'mapillary': 300_000}
# 50 and 100 times 7375 iterations of 16 images; a tenth at 8/9, a hundredth at 26/27.
STEP = {'coco': 368_750, 'coco swin-l': 737_500}
MILESTONES = {368_750: (327_778, 355_092), 737_500: (655_556, 710_184)}
EVERY = {**POLY, **STEP}


def official_factor(name: str, iteration: int) -> float:
    """Return the factor of the starting rate in this iteration, counted from 0."""
    share = min(iteration / WARMUP_ITERS, 1.0)
    warmup = WARMUP_FACTOR * (1 - share) + share
    if name in POLY:
        return warmup * (1 - iteration / POLY[name]) ** 0.9
    return warmup * 0.1 ** bisect_right(MILESTONES[STEP[name]], iteration)


def schedule_of(row: str) -> str:
    name, dataset, _, _ = parse(row)
    return f'{dataset} {name}' if (dataset, name) == ('coco', 'swin-l') else dataset


def official_rows(name: str) -> list[str]:
    return [row for row in ROWS if schedule_of(row) == name and not parse(row).is_mmseg]


def key(cfg: Config) -> str:
    return json.dumps([list(cfg.param_scheduler), cfg.train_cfg.to_dict()])


def rates(cfg: Config, iterations: set[int]) -> dict[int, tuple[float, ...]]:
    """The groups' rates in these iterations, from the row's schedulers as a run steps them."""
    groups = [{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in START]
    optimizer = torch.optim.AdamW(groups, lr=START[0])
    wrapper = OptimWrapper(optimizer)
    schedulers = [
        PARAM_SCHEDULERS.build(settings, default_args={'optimizer': wrapper})
        for settings in cfg.param_scheduler
    ]
    wrapper.step()  # without a gradient: else the first step of the schedule would warn
    found = {}
    for iteration in range(max(iterations) + 1):
        if iteration in iterations:
            found[iteration] = tuple(group['lr'] for group in optimizer.param_groups)
        for scheduler in schedulers:
            scheduler.step()
    return found


@pytest.mark.parametrize('name', EVERY)
def test_rates_of_a_run(name: str) -> None:
    cfg, last = load(official_rows(name)[0]), EVERY[name] - 1
    assert cfg.train_cfg.max_iters == EVERY[name]
    iterations = {*range(12), EVERY[name] // 2, last - 1, last}
    for milestone in MILESTONES.get(EVERY[name], ()):
        iterations |= {milestone - 1, milestone, milestone + 1}
    for iteration, found in rates(cfg, iterations).items():
        factor = official_factor(name, iteration)
        assert found == pytest.approx([lr * factor for lr in START], rel=1e-9), iteration


def test_numbers_by_hand() -> None:
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


@pytest.mark.parametrize('name', EVERY)
def test_rows_of_a_data_set_share_the_schedule(name: str) -> None:
    rows = official_rows(name)
    assert len(rows) > 1
    assert len({key(load(row)) for row in rows}) == 1


def test_every_official_row_is_one_of_them() -> None:
    found = [row for name in EVERY for row in official_rows(name)]
    assert sorted(found) == [row for row in ROWS if not parse(row).is_mmseg]
