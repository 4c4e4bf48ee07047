"""Single colors by hand with fixed draws, and every step on every pixel of a photo."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mmseg_m2f.adapters.data.photometric import PhotoMetricDistortion


# The coins: brightness; contrast first; contrast if first; saturation; hue; contrast if last.
@pytest.mark.parametrize(
    ('integers', 'numbers', 'before', 'after'),
    [
        ([0, 1, 0, 0, 0], [], (250, 0, 77), (250, 0, 77)),
        # Brightness is added and cut off.
        ([1, 1, 0, 0, 0], [20.7], (0, 100, 240), (20, 120, 255)),
        ([1, 1, 0, 0, 0], [-20.5], (0, 100, 240), (0, 79, 219)),
        # Contrast comes after brightness or at the end; the hue of a grey does not matter.
        ([1, 1, 1, 0, 0], [20, 1.5], (100, 10, 200), (180, 45, 255)),
        ([1, 0, 0, 1, 5, 1], [20, 0.5], (100, 100, 100), (60, 60, 60)),
        # Pure red of 200: at half the saturation (127 of 255) blue and green become 200 * 128/255.
        ([0, 1, 0, 1, 0], [0.5], (0, 0, 200), (100, 100, 200)),
        ([0, 1, 0, 1, 0], [1.5], (0, 0, 200), (0, 0, 200)),
        ([0, 1, 0, 1, 0], [1.5], (80, 80, 80), (80, 80, 80)),
        # A hue of 18 is 36 degrees: red turns towards yellow, with green at 36 / 60 of 200. Back by
        # as much it passes 0 and turns towards violet.
        ([0, 1, 0, 0, 1, 18], [], (0, 0, 200), (0, 120, 200)),
        ([0, 1, 0, 0, 1, -18], [], (0, 0, 200), (120, 0, 200)),
    ],
)
def test_colors_by_hand(monkeypatch, integers, numbers, before, after):
    # Coins and hue come from ``randint``, the rest from ``uniform``.
    for name, values in (('randint', iter(integers)), ('uniform', iter(numbers))):
        monkeypatch.setattr(np.random, name, lambda *_, values=values: next(values))
    img = np.array([[before]], np.uint8)
    result = PhotoMetricDistortion().transform({'img': img})['img']
    assert result.dtype == np.uint8
    assert result.tolist() == [[list(after)]]


def coin():
    return bool(np.random.randint(2))


def linear(values, alpha, beta):
    changed = values.astype(np.float32) * np.float32(alpha) + np.float32(beta)
    return changed.clip(0, 255).astype(np.uint8)


def contrast(img):
    return linear(img, np.random.uniform(0.5, 1.5), 0) if coin() else img


def in_full(img):
    """Apply every step to every pixel, with the draws in the same order."""
    if coin():
        img = linear(img, 1, np.random.uniform(-32, 32))
    contrast_first = coin()
    if contrast_first:
        img = contrast(img)
    saturation = np.random.uniform(0.5, 1.5) if coin() else None
    hue = np.random.randint(-18, 19) if coin() else 0
    if saturation is not None:
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = linear(hsv[..., 1], saturation, 0)
        img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if hue:
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return img if contrast_first else contrast(img)


def test_tables_give_what_arithmetic_on_every_pixel_gives():
    photo = Path(__file__).parents[3] / 'data/tiny/coco/img/train/000000000030.jpg'
    # A crop, whose rows do not follow each other in memory.
    img = cv2.imread(str(photo))[20:150, 30:200]
    before = img.copy()
    for seed in range(64):
        np.random.seed(seed)
        expected, state = in_full(img), np.random.uniform()
        np.random.seed(seed)
        result = PhotoMetricDistortion().transform({'img': img})['img']
        assert (result == expected).all()
        assert np.random.uniform() == state
    assert (img == before).all()
