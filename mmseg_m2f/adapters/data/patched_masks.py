"""mmdet's masks in a small pickle. Importing this module imports mmdet."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmdet.structures.mask import BitmapMasks


class PatchedMasks(BitmapMasks):
    """``BitmapMasks`` of 0 and 1 that are pickled as bits of the boxes around them.

    Workers send their samples through a pipe, where whole masks would take longer than all else.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        boxes = [cv2.boundingRect(mask) for mask in self.masks]
        bits = [
            np.packbits(mask[y : y + height, x : x + width])
            for mask, (x, y, width, height) in zip(self.masks, boxes, strict=True)
        ]
        return unpacked, (boxes, bits, self.height, self.width)


def unpacked(
    boxes: Sequence[Sequence[int]], bits: Sequence[np.ndarray], height: int, width: int
) -> PatchedMasks:
    """Restore the masks from the pickle: ``masks (N, height, width)`` uint8."""
    restored = PatchedMasks([], height, width)
    # Set afterwards: the constructor refuses images without rows.
    restored.masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x, y, columns, rows), packed in zip(restored.masks, boxes, bits, strict=True):
        pixels = np.unpackbits(packed, count=rows * columns)
        mask[y : y + rows, x : x + columns] = pixels.reshape(rows, columns)
    return restored
