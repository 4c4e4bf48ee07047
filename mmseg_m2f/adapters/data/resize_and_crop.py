"""Resize only the part of an image that a crop keeps."""

import math
from typing import Any, NamedTuple

import mmcv
import numpy as np
from PIL import Image

from mmseg_m2f.adapters.data.transform import Transform
from mmseg_m2f.registry import TRANSFORMS

BILINEAR = Image.Resampling.BILINEAR
BACKENDS = ('pillow', 'cv2')
Size = tuple[int, int]


class Box(NamedTuple):
    """A rectangle of pixels: its left column, its upper row, its width and height."""

    x: int
    y: int
    width: int
    height: int


@TRANSFORMS.register_module()
class ResizeAndCrop(Transform):
    """Resize and crop in one step: the same pixels as one after the other, in less time.

    Both steps draw their random numbers as they do alone, the resize first.

    Args:
        resize: config of ``mmseg_m2f.ResizeShortestEdge`` or ``mmseg_m2f.ResizeScale``.
        crop: config of ``mmseg_m2f.RandomCrop`` or ``mmseg_m2f.FixedSizeCrop``.

    Raises:
        ValueError: ``resize`` or ``crop`` is another transform.
    """

    def __init__(self, resize: dict[str, Any], crop: dict[str, Any]) -> None:
        self.resize, self.crop = TRANSFORMS.build(resize), TRANSFORMS.build(crop)
        if not hasattr(self.resize, 'draw_size'):
            raise ValueError(
                'ResizeAndCrop: resize must be mmseg_m2f.ResizeShortestEdge or '
                f'mmseg_m2f.ResizeScale, got {resize!r}'
            )
        if not hasattr(self.crop, 'draw_box'):
            raise ValueError(
                'ResizeAndCrop: crop must be mmseg_m2f.RandomCrop or mmseg_m2f.FixedSizeCrop, '
                f'got {crop!r}'
            )

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Move ``img`` (uint8), every label map in ``seg_fields``, and ``gt_segments``."""
        size = self.resize.draw_size(results['img'].shape[:2])
        box = self.crop.draw_box(size)
        return self.crop.fill(resize_part(results, size, box, self.resize.backend))


def checked_backend(backend: str) -> str:
    """Return the name of the image filter if there is one of this name.

    Raises:
        ValueError: the name is not in ``BACKENDS``.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, got {backend!r}')
    return backend


def resize_part(
    results: dict[str, Any], size: Size, box: Box | None = None, backend: str = 'pillow'
) -> dict[str, Any]:
    """Resize image, label maps and segments to ``size`` (height, width), and keep only ``box``.

    The image (uint8) is filtered bilinearly. Label maps take source pixel
    ``floor(i * old / new)``. Segments follow their own rules.

    Args:
        results: the record. ``scale`` and ``scale_factor`` are written for the whole image.
        size: the size of the whole image after resizing.
        box: the pixels to keep. Default: all.
        backend: the image filter, ``'pillow'`` or ``'cv2'``.
    """
    img = results['img']
    old_height, old_width = img.shape[:2]
    height, width = size
    box = box or Box(0, 0, width, height)
    results['img'] = resized_image(img, size, box, backend)
    for key in results.get('seg_fields', []):
        results[key] = _resized_labels(results[key], size, box)
    if 'gt_segments' in results:
        results['gt_segments'] = results['gt_segments'].resize(size).crop(*box)
    results['img_shape'] = (box.height, box.width)
    results['scale'] = (width, height)
    results['scale_factor'] = (width / old_width, height / old_height)
    results['keep_ratio'] = True
    return results


def resized_image(img: np.ndarray, size: Size, box: Box, backend: str = 'pillow') -> np.ndarray:
    """Return the pixels in ``box`` of the image resized to ``size`` (height, width).

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
    strip = Image.fromarray(img[top:bottom]).resize((new_width, bottom - top), BILINEAR)
    # The strip goes back to its place between black rows, none of which reaches the box.
    columns = strip.crop((x1, -top, x2, height - top))
    resized = columns.resize((x2 - x1, new_height), BILINEAR)
    return np.array(resized.crop((0, y1, x2 - x1, y2)))


def _rows_that_matter(height: int, new_height: int, y1: int, y2: int) -> tuple[int, int]:
    """Return the first and the end of the source rows that the filter reads for rows y1 to y2."""
    step = height / new_height
    # The filter reaches this far above and below a pixel's center, and one row more for rounding.
    reach = max(step, 1.0) + 1
    first = math.floor((y1 + 0.5) * step - reach)
    end = math.ceil((y2 - 0.5) * step + reach)
    return max(first, 0), min(end, height)


def _resized_labels(label_map: np.ndarray, size: Size, box: Box) -> np.ndarray:
    # In whole numbers: OpenCV rounds some values of i * old / new that are whole to the one below.
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(label_map.shape[:2], size, strict=True)
    )
    rows, columns = rows[box.y : box.y + box.height], columns[box.x : box.x + box.width]
    return label_map.take(rows, axis=0).take(columns, axis=1)
