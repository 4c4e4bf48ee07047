"""Masks of instances for MMDetection that are small on their way from a worker."""

from typing import Any

import cv2
import numpy as np
from mmdet.structures.mask import BitmapMasks

# x, y, height and width of the rectangle where a mask lies, and the bits in it.
PackedPatch = tuple[int, int, int, int, np.ndarray]


class PatchedMasks(BitmapMasks):
    """MMDetection's masks of 0 and 1, pickled as the bits where they lie.

    Workers hand images over through a pipe. In full, a byte for every pixel of the image, the
    masks would take longer there than all that the worker did to make them.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        patches = [_packed(mask) for mask in self.masks]
        return unpacked, (patches, self.height, self.width)


def unpacked(patches: list[PackedPatch], height: int, width: int) -> PatchedMasks:
    """What was pickled: ``masks (N, height, width)`` uint8."""
    masks = np.zeros((len(patches), height, width), np.uint8)
    for mask, (x, y, rows, columns, bits) in zip(masks, patches, strict=True):
        pixels = np.unpackbits(bits, count=rows * columns)
        mask[y : y + rows, x : x + columns] = pixels.reshape(rows, columns)
    whole = PatchedMasks(masks[:0], height, width)
    # The constructor copies masks, and upstream's takes none without rows.
    whole.masks = masks
    return whole


def _packed(mask: np.ndarray) -> PackedPatch:
    x, y, columns, rows = cv2.boundingRect(mask)
    return x, y, rows, columns, np.packbits(mask[y : y + rows, x : x + columns])
