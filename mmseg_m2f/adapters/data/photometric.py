"""The color jitter of SSD, as the official code applies it."""

from typing import Any

import cv2
import numpy as np

from mmseg_m2f.adapters.data.transforms import Transform
from mmseg_m2f.registry import TRANSFORMS

BRIGHTNESS = 32
CONTRAST = SATURATION = (0.5, 1.5)
# OpenCV's 8-bit hues go from 0 to 179.
HUE = 18
NUM_HUES = 180
# Every step maps a byte to a byte, so it is computed once per value, not once per pixel.
LEVELS = np.arange(256, dtype=np.uint8)


@TRANSFORMS.register_module()
class PhotoMetricDistortion(Transform):
    """Change brightness, contrast, saturation and hue, each in half of the images.

    Contrast comes right after brightness or at the end, with equal probability. Two things differ
    from the frameworks' transforms of this name: each step gives whole numbers, and the channels
    are not swapped.

    Source: official ``ColorAugSSDTransform`` in detectron2's projects/PointRend; Liu et al., "SSD",
    ECCV 2016.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img`` (uint8, BGR)."""
        table = _linear(LEVELS, beta=_drawn(-BRIGHTNESS, BRIGHTNESS, neutral=0))
        contrast_first = _coin()
        if contrast_first:
            table = _linear(table, alpha=_drawn(*CONTRAST, neutral=1))
        img = cv2.LUT(results['img'], table)
        saturation = _drawn(*SATURATION, neutral=1)
        hue = int(np.random.randint(-HUE, HUE + 1)) if _coin() else 0
        # The official code converts to HSV and back for each of the two, which rounds twice.
        if saturation != 1:
            img = _change_channel(img, 1, _linear(LEVELS, alpha=saturation))
        if hue != 0:
            turned = (LEVELS.astype(int) + hue) % NUM_HUES
            img = _change_channel(img, 0, turned.astype(np.uint8))
        if not contrast_first:
            img = cv2.LUT(img, _linear(LEVELS, alpha=_drawn(*CONTRAST, neutral=1)))
        results['img'] = img
        return results


def _coin() -> bool:
    return bool(np.random.randint(2))


def _drawn(low: float, high: float, neutral: float) -> float:
    return np.random.uniform(low, high) if _coin() else neutral


def _linear(values: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    """Compute ``alpha * values + beta``, clipped to 0..255 and rounded down."""
    changed = values.astype(np.float32) * np.float32(alpha) + np.float32(beta)
    return changed.clip(0, 255).astype(np.uint8)


def _change_channel(img: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Look up one channel in the table: 0 is hue, 1 saturation, 2 value."""
    hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
    changed = cv2.LUT(cv2.extractChannel(hsv, channel), table)
    return cv2.cvtColor(cv2.insertChannel(changed, hsv, channel), cv2.COLOR_HSV2BGR)
