"""Resize an image or a label map, and compute only the part that a crop keeps."""

import math
from typing import NamedTuple

import mmcv
import numpy as np
from PIL import Image

Size = tuple[int, int]


class Box(NamedTuple):
    """A rectangle of pixels: its left column, its upper row, its width and height."""

    x: int
    y: int
    width: int
    height: int


def resized_image(img: np.ndarray, size: Size, box: Box, backend: str = 'pillow') -> np.ndarray:
    """Return the pixels in ``box`` of the image (uint8) resized to ``size`` (height, width).

    Pillow filters along the rows first, rounds to bytes, and then filters down the columns. This
    function runs both passes on less: the first only on the rows that matter for the box, the
    second only on the columns in the box. The result is the same to the bit. Pillow's own
    ``resize(box=...)`` gives other numbers, because it computes the filter's place in float32.
    """
    (height, width), (new_height, new_width) = img.shape[:2], size
    x1, y1, x2, y2 = box.x, box.y, box.x + box.width, box.y + box.height
    is_all = box == (0, 0, new_width, new_height)
    # When the image shrinks, newer versions of Pillow may filter the columns first.
    shrinks = new_height < height or new_width < width
    if is_all or shrinks or backend != 'pillow':
        whole = mmcv.imresize(img, (new_width, new_height), backend=backend)
        return whole if is_all else np.ascontiguousarray(whole[y1:y2, x1:x2])
    top, bottom = _rows_that_matter(height, new_height, y1, y2)
    bilinear = Image.Resampling.BILINEAR
    strip = Image.fromarray(img[top:bottom]).resize((new_width, bottom - top), bilinear)
    # The strip goes back to its place between black rows, none of which reaches the box.
    columns = strip.crop((x1, -top, x2, height - top))
    resized = columns.resize((x2 - x1, new_height), bilinear)
    return np.array(resized.crop((0, y1, x2 - x1, y2)))


def _rows_that_matter(height: int, new_height: int, y1: int, y2: int) -> tuple[int, int]:
    """Return the first and the end of the source rows that the filter reads for rows y1 to y2."""
    step = height / new_height
    # The filter reaches this far above and below a pixel's center, and one row more for rounding.
    reach = max(step, 1.0) + 1
    first = math.floor((y1 + 0.5) * step - reach)
    end = math.ceil((y2 - 0.5) * step + reach)
    return max(first, 0), min(end, height)


def resized_labels(label_map: np.ndarray, size: Size, box: Box) -> np.ndarray:
    """Return the pixels in ``box`` of the map resized to ``size``: source ``floor(i * old / new)``.

    It computes with integers. OpenCV computes with floats, and may end one pixel too early where
    ``i * old / new`` is a whole number.
    """
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(label_map.shape[:2], size, strict=True)
    )
    rows, columns = rows[box.y : box.y + box.height], columns[box.x : box.x + box.width]
    return label_map.take(rows, axis=0).take(columns, axis=1)
