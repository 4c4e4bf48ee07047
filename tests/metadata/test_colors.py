"""Made-up colors tell classes apart."""

import numpy as np
import pytest

from mmseg_m2f.metadata.colors import spread_colors, voc_colors


@pytest.mark.parametrize('number', [1, 2, 19, 133])
def test_spread_colors_differ_most_between_neighbors(number: int) -> None:
    colors = spread_colors(number)
    assert len(set(colors)) == number
    assert colors == spread_colors(number)
    assert (np.abs(np.diff(np.array(colors), axis=0)).sum(1) > 60).all()


def test_voc_colors_by_hand_and_all_different() -> None:
    assert voc_colors(4) == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    colors = voc_colors(1000)
    assert len({tuple(color) for color in colors}) == 1000
    assert all(0 <= value < 256 for color in colors for value in color)
