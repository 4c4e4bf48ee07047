"""mmdet's masks in a small pickle. Importing this module imports mmdet."""

from typing import Any

import cv2
import numpy as np
from mmdet.structures.mask import BitmapMasks

# Of a mask: x, y, height and width of the box around its pixels, and the bits in this box.
PackedPatch = tuple[int, int, int, int, np.ndarray]


class PatchedMasks(BitmapMasks):
    """``BitmapMasks`` of 0 and 1 that are pickled as bits of the boxes around them.

    Workers send their samples through a pipe. As one byte for every pixel of the image, masks
    would take longer there than all other work of the worker.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        patches = [_packed(mask) for mask in self.masks]
        return unpacked, (patches, self.height, self.width)


def unpacked(patches: list[PackedPatch], height: int, width: int) -> PatchedMasks:
    """Restore the masks from the pickle: ``masks (N, height, width)`` uint8."""
    masks = np.zeros((len(patches), height, width), np.uint8)
    for mask, (x, y, rows, columns, bits) in zip(masks, patches, strict=True):
        pixels = np.unpackbits(bits, count=rows * columns)
        mask[y : y + rows, x : x + columns] = pixels.reshape(rows, columns)
    restored = PatchedMasks(masks[:0], height, width)
    # Set afterwards: the constructor copies masks, and upstream's refuses images without rows.
    restored.masks = masks
    return restored


def _packed(mask: np.ndarray) -> PackedPatch:
    x, y, columns, rows = cv2.boundingRect(mask)
    return x, y, rows, columns, np.packbits(mask[y : y + rows, x : x + columns])
