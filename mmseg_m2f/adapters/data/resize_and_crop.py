"""A image that is resized only where a crop wants it, bit for bit as if all of it had been."""

import math
from typing import Any

import numpy as np
from PIL import Image

BILINEAR = Image.Resampling.BILINEAR


class DeferredResize:
    """What Pillow's bilinear filter will make of a image, for a transform that cuts it next.

    Like an array it has ``shape``, ``ndim`` and ``dtype``; cut by two slices, or put through
    ``numpy.asarray``, it becomes one. OpenCV does not take it.

    Args:
        source: uint8 image, (height, width) or (height, width, 3).
        size: (height, width) to come.
    """

    def __init__(self, source: np.ndarray, size: tuple[int, int]) -> None:
        self.source = source
        self.size = size
        self.shape = (*size, *source.shape[2:])
        self.ndim = source.ndim
        self.dtype = source.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        """``image[y1:y2, x1:x2]`` in steps of 1; any other key is left to numpy."""
        sides = [part for part in key if part is not Ellipsis] if isinstance(key, tuple) else []
        if len(sides) != 2 or not all(_is_plain(side) for side in sides):
            return np.asarray(self)[key]
        (y1, y2, _), (x1, x2, _) = (
            side.indices(length) for side, length in zip(sides, self.size, strict=True)
        )
        return resized_part(self.source, self.size, (x1, y1, max(x1, x2), max(y1, y2)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f'{name}: this image waits for the crop that says which part of it to resize '
            '(deferred=True of the resizing). Put the crop right after it, or leave deferred out.'
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:, :], dtype)


def _is_plain(key: Any) -> bool:
    return isinstance(key, slice) and key.step in (None, 1)


def resized_part(
    img: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]
) -> np.ndarray:
    """The pixels in ``box``, ``x1 y1 x2 y2``, of the image resized to ``size``.

    Pillow filters along the rows, rounds to bytes, then filters down the columns. It does here,
    too; first of the rows that matter for the box, then of the columns within it. Its own
    ``resize(box=...)`` will not do: single precision moves the filter.
    """
    (height, width), (new_height, new_width) = img.shape[:2], size
    x1, y1, x2, y2 = box
    if x1 >= x2 or y1 >= y2:
        return np.zeros((y2 - y1, x2 - x1, *img.shape[2:]), img.dtype)
    is_all = box == (0, 0, new_width, new_height)
    if is_all or new_height < height or new_width < width:
        # Where it shrinks, newer versions of Pillow may filter the columns first.
        resized = Image.fromarray(img).resize((new_width, new_height), BILINEAR)
        return np.array(resized if is_all else resized.crop(box))
    top, bottom = _rows_that_matter(height, new_height, y1, y2)
    strip = Image.fromarray(img[top:bottom]).resize((new_width, bottom - top), BILINEAR)
    # Where it was cut out the strip is put back: of black rows nothing reaches the box.
    columns = strip.crop((x1, -top, x2, height - top))
    resized = columns.resize((x2 - x1, new_height), BILINEAR)
    return np.array(resized.crop((0, y1, x2 - x1, y2)))


def _rows_that_matter(height: int, new_height: int, y1: int, y2: int) -> tuple[int, int]:
    """The first and the end of those that the filter reads for the rows ``y1`` to ``y2 - 1``."""
    step = height / new_height
    # The filter reaches as far to both sides of a centre; a row more leaves room for rounding.
    reach = max(step, 1.0) + 1
    first = math.floor((y1 + 0.5) * step - reach)
    end = math.ceil((y2 - 0.5) * step + reach)
    return max(first, 0), min(end, height)
