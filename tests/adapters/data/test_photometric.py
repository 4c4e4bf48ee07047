"""Single colours by hand, with the draws written down."""

import numpy as np
import pytest

from mmseg_m2f.adapters.data.photometric import PhotoMetricDistortion


@pytest.fixture
def draws(monkeypatch):
    """Sets what the generator gives: coins and hue from ``randint``, the rest from ``uniform``."""

    def set_draws(integers, numbers):
        integers, numbers = iter(integers), iter(numbers)

        def randint(low, high=None):
            value = next(integers)
            assert (0 <= value < low) if high is None else (low <= value < high)
            return value

        def uniform(low, high):
            value = next(numbers)
            assert low <= value <= high
            return value

        monkeypatch.setattr(np.random, 'randint', randint)
        monkeypatch.setattr(np.random, 'uniform', uniform)

    return set_draws


def distorted(*colours):
    img = np.array([colours], np.uint8)
    result = PhotoMetricDistortion().transform({'img': img})['img']
    assert result.dtype == np.uint8
    return result[0].tolist()


# The coins: brightness; contrast first; contrast if first; saturation; hue; contrast if last.
def test_nothing_is_drawn(draws):
    draws([0, 1, 0, 0, 0], [])
    assert distorted((1, 2, 3), (250, 0, 77)) == [[1, 2, 3], [250, 0, 77]]


def test_brightness_is_added_and_cut_off(draws):
    draws([1, 1, 0, 0, 0], [20.7])
    assert distorted((0, 100, 240)) == [[20, 120, 255]]
    draws([1, 1, 0, 0, 0], [-20.5])
    assert distorted((0, 100, 240)) == [[0, 79, 219]]


def test_contrast_comes_after_brightness_or_at_the_end(draws):
    draws([1, 1, 1, 0, 0], [20, 1.5])
    assert distorted((100, 10, 200)) == [[180, 45, 255]]
    # The hue of a grey does not matter: contrast is last here.
    draws([1, 0, 0, 1, 5, 1], [20, 0.5])
    assert distorted((100, 100, 100)) == [[60, 60, 60]]


def test_saturation(draws):
    # Pure red of 200: at half the saturation (127 of 255) the others rise to 200 * 128 / 255.
    draws([0, 1, 0, 1, 0], [0.5])
    assert distorted((0, 0, 200)) == [[100, 100, 200]]
    draws([0, 1, 0, 1, 0], [1.5])
    assert distorted((0, 0, 200), (80, 80, 80)) == [[0, 0, 200], [80, 80, 80]]


def test_hue_goes_round(draws):
    # 18 are 36 degrees: red turns towards yellow, with green at 36 / 60 of 200.
    draws([0, 1, 0, 0, 1, 18], [])
    assert distorted((0, 0, 200)) == [[0, 120, 200]]
    # Back by as much it passes 0 and turns towards violet.
    draws([0, 1, 0, 0, 1, -18], [])
    assert distorted((0, 0, 200)) == [[120, 0, 200]]


def test_a_sixteenth_stays_and_the_seed_decides():
    picture = np.random.default_rng(0).integers(30, 220, (4, 4, 3), np.uint8)

    def run():
        np.random.seed(5)
        return [PhotoMetricDistortion().transform({'img': picture})['img'] for _ in range(800)]

    first, second = run(), run()
    assert (np.array(first) == np.array(second)).all()
    assert 30 <= sum((img == picture).all() for img in first) <= 70
