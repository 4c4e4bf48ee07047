"""Training as MMDetection does, step by step, and what each switch changes."""

from functools import cache

import pytest

pytest.importorskip('mmdet')

from tests.parity import trajectories
from tests.parity.trajectories import NUM_QUERIES, NUM_THINGS, change

pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),
    # mmdet's own configuration.
    pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention'),
]
FEW = 3
switched = cache(trajectories.switched)


def test_twenty_steps_equal_mmdet_s():
    """Every term of every step; the batches hold empty images and too many segments."""
    numbers = [
        [len(sample.gt_instances) + len(sample.gt_sem_seg.sem_seg.unique()) for sample in samples]
        for _, samples in trajectories.batches()
    ]
    assert any(number > NUM_QUERIES + 1 for pair in numbers for number in pair)
    # Nothing but the ignored label.
    assert [pair[1] for pair in numbers].count(1) >= 5
    ours, theirs = trajectories.both()
    assert len(ours) == len(theirs) == 20
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    assert theirs[-1]['loss'] < 0.9 * theirs[0]['loss']


def test_the_normalizer_scales_the_mask_losses_of_the_first_step():
    """The first batch has an empty image: mmdet counts one mask more than there are."""
    official = switched(FEW, num_masks_mode='official')
    _, (full, empty) = trajectories.batches(1)[0]
    labels = full.gt_sem_seg.sem_seg.unique()
    number = len(full.gt_instances) + int(((labels >= NUM_THINGS) & (labels < 11)).sum())
    counted = min(number, NUM_QUERIES) + 1
    assert len(empty.gt_instances) == 0
    assert counted != number
    for name in official[0].keys() - {'loss'}:
        factor = 1 if 'cls' in name else counted / number
        assert official[0][name] == pytest.approx(factor * switched(FEW)[0][name], rel=1e-9)


def test_each_switch_of_training_changes_the_trajectory():
    assert max(map(abs, change(switched(FEW, init='official'), switched(FEW)))) > 1e-3
    kept, dropped = (switched(FEW, keep_empty_gt=keep) for keep in (True, False))
    assert max(map(abs, change(kept, dropped))) > 1e-3


def test_the_panoptic_switch_does_not_touch_training():
    assert switched(FEW, panoptic_mask_intersection=True) == switched(FEW)
