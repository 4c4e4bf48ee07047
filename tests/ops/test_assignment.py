from itertools import permutations

import numpy as np
import pytest

from mmseg_m2f.ops import linear_sum_assignment


def cheapest(cost):
    """The least total over every way to give each column a row of its own (or the reverse)."""
    if cost.shape[0] < cost.shape[1]:
        cost = cost.T
    columns = range(cost.shape[1])
    return min(
        cost[list(rows), columns].sum() for rows in permutations(range(len(cost)), len(columns))
    )


def test_by_hand():
    # Row 0 likes column 0 best, but row 1 likes it more: 1 + 2 beats 0 + 4.
    rows, columns = linear_sum_assignment(np.array([[0.0, 2.0], [1.0, 4.0]]))
    assert rows.tolist() == [0, 1]
    assert columns.tolist() == [1, 0]


@pytest.mark.parametrize('shape', [(4, 4), (6, 3), (3, 6), (1, 5), (5, 1)])
def test_the_total_is_the_least_of_all(shape):
    generator = np.random.default_rng(0)
    for _ in range(20):
        cost = generator.normal(size=shape).astype(np.float32)
        rows, columns = linear_sum_assignment(cost)
        assert len(rows) == min(shape)
        assert len(set(columns.tolist())) == min(shape)
        assert (np.diff(rows) > 0).all()
        assert cost[rows, columns].sum() == pytest.approx(cheapest(cost), abs=1e-5)


@pytest.mark.parametrize('shape', [(3, 0), (0, 3), (0, 0)])
def test_nothing_to_assign(shape):
    rows, columns = linear_sum_assignment(np.zeros(shape, dtype=np.float32))
    assert rows.shape == columns.shape == (0,)
    assert rows.dtype == columns.dtype == np.int64
