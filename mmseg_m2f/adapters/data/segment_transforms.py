"""Transforms that move an image and its segments together, as the official code does.

Random numbers come from NumPy's global generator, which MMEngine seeds in each worker.
"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from mmseg_m2f.adapters.data.resize_and_crop import Box, checked_backend, resize_part
from mmseg_m2f.adapters.data.transform import Transform
from mmseg_m2f.registry import TRANSFORMS

PAD_VALUE = 128
Size = tuple[int, int]


@TRANSFORMS.register_module()
class ResizeScale(Transform):
    """Fit the image into a target of random scale, and keep the ratio of its sides.

    Args:
        min_scale, max_scale: the target size is multiplied by a number drawn between the two.
        target_size: (height, width) in pixels.
        backend: filter of the image, ``'pillow'`` (smooths when it shrinks, as the official code
            does) or ``'cv2'`` (does not).

    Source: detectron2 data/transforms/augmentation_impl.py, ``ResizeScale``.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_size: Size,
        backend: Literal['pillow', 'cv2'] = 'pillow',
    ) -> None:
        if not 0 < min_scale <= max_scale:
            raise ValueError(
                f'0 < min_scale <= max_scale is required, got {min_scale} and {max_scale}'
            )
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_size = _checked_size('target_size', target_size)
        self.backend = checked_backend(backend)

    def draw_size(self, size: Size) -> Size:
        """Return the new (height, width) of an image of this size."""
        scale = np.random.uniform(self.min_scale, self.max_scale)
        factor = min(np.multiply(self.target_size, scale) / size)
        height, width = (max(int(length), 1) for length in np.round(np.multiply(size, factor)))
        return height, width

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize ``img`` (uint8), every label map in ``seg_fields``, and ``gt_segments``."""
        size = self.draw_size(results['img'].shape[:2])
        return resize_part(results, size, backend=self.backend)


class Crop(Transform):
    """The part common to `FixedSizeCrop` and `RandomCrop`."""

    def __init__(self, crop_size: Size) -> None:
        self.crop_size = _checked_size('crop_size', crop_size)

    def draw_offset(self, room: np.ndarray) -> Iterable[int]:
        """Return upper row and left column; ``room (2,)`` is the largest value of each."""
        raise NotImplementedError

    def draw_box(self, size: Size) -> Box:
        """Return the part to keep of an image of this size (height, width)."""
        y, x = self.draw_offset(np.maximum(np.subtract(size, self.crop_size), 0))
        height, width = (min(pair) for pair in zip(size, self.crop_size, strict=True))
        return Box(x, y, width, height)

    def fill(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pad a crop that is smaller than ``crop_size``, if this transform pads."""
        return results

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop ``img``, every label map in ``seg_fields``, and ``gt_segments``."""
        return self.fill(_crop(results, self.draw_box(results['img'].shape[:2])))


@TRANSFORMS.register_module()
class FixedSizeCrop(Crop):
    """Crop at random to exactly this size; pad a smaller image at the right and the bottom.

    Args:
        crop_size: (height, width) in pixels.
        pad_value: value of padded pixels. Padding belongs to no segment.
        offsets: ``'shared'`` draws one number for both axes, as the official code does, so all
            crops lie on the diagonal of the image. ``'independent'`` draws one for each axis.

    Source: detectron2 data/transforms/augmentation_impl.py, ``FixedSizeCrop``.
    """

    def __init__(
        self,
        crop_size: Size,
        pad_value: int = PAD_VALUE,
        offsets: Literal['shared', 'independent'] = 'shared',
    ) -> None:
        super().__init__(crop_size)
        if offsets not in ('shared', 'independent'):
            raise ValueError(f"offsets must be 'shared' or 'independent', got {offsets!r}")
        self.pad_value = pad_value
        self.offsets = offsets

    def draw_offset(self, room: np.ndarray) -> Iterable[int]:
        share = np.random.uniform(size=1 if self.offsets == 'shared' else 2)
        return np.round(room * share).astype(int).tolist()

    def fill(self, results: dict[str, Any]) -> dict[str, Any]:
        return _pad(results, self.crop_size, self.pad_value)


@TRANSFORMS.register_module()
class RandomCrop(Crop):
    """Crop at random to this size; a side of the image that is smaller stays as it is.

    Args:
        crop_size: (height, width) in pixels.

    Source: detectron2 data/transforms/augmentation_impl.py, ``RandomCrop`` of type "absolute". The
    official recipes also limit the share of one class in a crop, but to 1, which has no effect.
    """

    def draw_offset(self, room: np.ndarray) -> Iterable[int]:
        return [int(np.random.randint(length + 1)) for length in room]


@TRANSFORMS.register_module()
class RandomFlip(Transform):
    """Swap left and right with a given probability.

    Args:
        prob: the probability, from 0 to 1.
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be from 0 to 1, got {prob}')
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Flip ``img`` and ``gt_segments``; write ``flip`` and ``flip_direction``."""
        results['flip'] = bool(np.random.uniform() < self.prob)
        results['flip_direction'] = 'horizontal' if results['flip'] else None
        if results['flip']:
            results['img'] = np.ascontiguousarray(results['img'][:, ::-1])
            if 'gt_segments' in results:
                results['gt_segments'] = results['gt_segments'].flip()
        return results


@TRANSFORMS.register_module()
class PadToSize(Transform):
    """Pad at the right and the bottom.

    Args:
        size: (height, width) in pixels. No image may be larger.
        pad_value: value of padded pixels. Padding belongs to no segment.
    """

    def __init__(self, size: Size, pad_value: int = PAD_VALUE) -> None:
        self.size = _checked_size('size', size)
        self.pad_value = pad_value

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pad ``img`` and ``gt_segments``.

        Raises:
            ValueError: the image is larger than ``size``.
        """
        size = results['img'].shape[:2]
        if any(np.greater(size, self.size)):
            raise ValueError(
                f'PadToSize(size={self.size}) got an image of {size} (height, width): '
                f'{results.get("img_path")}. Crop to at most this size before.'
            )
        return _pad(results, self.size, self.pad_value)


def _checked_size(key: str, size: Size) -> Size:
    if not isinstance(size, tuple | list) or len(size) != 2 or min(size) < 1:
        raise ValueError(f'{key} must be (height, width) in pixels, got {size!r}')
    return int(size[0]), int(size[1])


def _crop(results: dict[str, Any], box: Box) -> dict[str, Any]:
    rows, columns = slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)
    for key in ('img', *results.get('seg_fields', [])):
        results[key] = results[key][rows, columns]
    if 'gt_segments' in results:
        results['gt_segments'] = results['gt_segments'].crop(*box)
    results['img_shape'] = (box.height, box.width)
    return results


def _pad(results: dict[str, Any], size: Size, value: int) -> dict[str, Any]:
    img = results['img']
    if img.shape[:2] != size:
        padded = np.full((*size, *img.shape[2:]), value, img.dtype)
        padded[: img.shape[0], : img.shape[1]] = img
        results['img'] = padded
    if 'gt_segments' in results:
        results['gt_segments'] = results['gt_segments'].pad(size)
    results['img_shape'] = results['pad_shape'] = size
    return results
