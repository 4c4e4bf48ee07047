"""Transforms that move image and segments together, as the official code does.

Random numbers come from numpy's global generator, which MMEngine seeds in each worker.
"""

from typing import Any, Literal

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform

from mmseg_m2f.adapters.data.resize_and_crop import DeferredResize
from mmseg_m2f.registry import TRANSFORMS

PAD_VALUE = 128
BACKENDS = ('pillow', 'cv2')


@TRANSFORMS.register_module()
class ResizeScale(BaseTransform):
    """Fits the image into a target of random scale; the ratio of its sides is kept.

    Args:
        min_scale, max_scale: the target's size is multiplied by a number drawn in between.
        target_size: (height, width) in pixels.
        backend: of the image's filter: ``'pillow'`` smooths when it shrinks, as in the official
            code, ``'cv2'`` does not.
        deferred: resize no more than the next transform, a crop, will keep: the same pixels
            sooner. Between the two ``img`` is a `DeferredResize` and no array.

    Source: detectron2 data/transforms/augmentation_impl.py, ``ResizeScale``.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_size: tuple[int, int],
        backend: Literal['pillow', 'cv2'] = 'pillow',
        deferred: bool = False,
    ) -> None:
        if not 0 < min_scale <= max_scale:
            raise ValueError(
                f'0 < min_scale <= max_scale is required, got {min_scale} and {max_scale}'
            )
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_size = _checked_size('target_size', target_size)
        self.backend = checked_backend(backend, deferred)
        self.deferred = deferred

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resizes ``img`` (uint8) bilinearly, and ``gt_segments``."""
        scale = np.random.uniform(self.min_scale, self.max_scale)
        size = results['img'].shape[:2]
        factor = min(np.multiply(self.target_size, scale) / size)
        height, width = (max(int(length), 1) for length in np.round(np.multiply(size, factor)))
        return resize(results, (height, width), self.backend, self.deferred)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(min_scale={self.min_scale}, max_scale={self.max_scale}, '
            f'target_size={self.target_size}, backend={self.backend!r}, deferred={self.deferred})'
        )


def checked_backend(backend: str, deferred: bool = False) -> str:
    """The name of a filter that `resize` knows.

    Raises:
        ValueError: it is another, or is not one that can be deferred.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, got {backend!r}')
    if deferred and backend != 'pillow':
        raise ValueError(f"deferred=True requires backend='pillow', got {backend!r}")
    return backend


def resize(
    results: dict[str, Any],
    size: tuple[int, int],
    backend: str = 'pillow',
    deferred: bool = False,
) -> dict[str, Any]:
    """Resizes ``img`` (uint8) bilinearly, and ``gt_segments`` if they are there."""
    img = results['img']
    old_height, old_width = img.shape[:2]
    height, width = size
    results['img'] = (
        DeferredResize(img, size)
        if deferred
        else mmcv.imresize(img, (width, height), backend=backend)
    )
    if 'gt_segments' in results:
        results['gt_segments'] = results['gt_segments'].resize(size)
    results['img_shape'] = size
    results['scale'] = (width, height)
    results['scale_factor'] = (width / old_width, height / old_height)
    results['keep_ratio'] = True
    return results


@TRANSFORMS.register_module()
class FixedSizeCrop(BaseTransform):
    """A random crop of this very size; a smaller image is padded at the right and the bottom.

    Args:
        crop_size: (height, width) in pixels.
        pad_value: of the image; padding belongs to no segment.
        offsets: ``'shared'``, as in the official code, draws one number for both axes, so that the
            crops lie on the image's diagonal; ``'independent'`` draws one for each.

    Source: detectron2 data/transforms/augmentation_impl.py, ``FixedSizeCrop``.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad_value: int = PAD_VALUE,
        offsets: Literal['shared', 'independent'] = 'shared',
    ) -> None:
        if offsets not in ('shared', 'independent'):
            raise ValueError(f"offsets must be 'shared' or 'independent', got {offsets!r}")
        self.crop_size = _checked_size('crop_size', crop_size)
        self.pad_value = pad_value
        self.offsets = offsets

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crops and pads ``img`` and ``gt_segments``."""
        size = results['img'].shape[:2]
        room = np.maximum(np.subtract(size, self.crop_size), 0)
        share = np.random.uniform(size=1 if self.offsets == 'shared' else 2)
        y, x = np.round(room * share).astype(int).tolist()
        results = _crop(results, x, y, self.crop_size)
        return _pad(results, self.crop_size, self.pad_value)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(crop_size={self.crop_size}, pad_value={self.pad_value}, '
            f'offsets={self.offsets!r})'
        )


@TRANSFORMS.register_module()
class RandomCrop(BaseTransform):
    """A crop anywhere in the image, of this size or the image's where that is smaller.

    Args:
        crop_size: (height, width) in pixels.

    Source: detectron2 data/transforms/augmentation_impl.py, ``RandomCrop`` of type "absolute". The
    official recipes' limit on the share of one class is 1, so it never acts.
    """

    def __init__(self, crop_size: tuple[int, int]) -> None:
        self.crop_size = _checked_size('crop_size', crop_size)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crops ``img`` and ``gt_segments``."""
        room = np.maximum(np.subtract(results['img'].shape[:2], self.crop_size), 0)
        y, x = (int(np.random.randint(length + 1)) for length in room)
        return _crop(results, x, y, self.crop_size)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(crop_size={self.crop_size})'


@TRANSFORMS.register_module()
class RandomFlip(BaseTransform):
    """Mirrors left and right.

    Args:
        prob: how probable that is.
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be from 0 to 1, got {prob}')
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Mirrors ``img`` and ``gt_segments``; says so in ``flip`` and ``flip_direction``."""
        results['flip'] = bool(np.random.uniform() < self.prob)
        results['flip_direction'] = 'horizontal' if results['flip'] else None
        if results['flip']:
            results['img'] = _mirrored(results['img'])
            if 'gt_segments' in results:
                results['gt_segments'] = results['gt_segments'].flip()
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'


@TRANSFORMS.register_module()
class PadToSize(BaseTransform):
    """Pads at the right and the bottom.

    Args:
        size: (height, width) in pixels; no image may be larger.
        pad_value: of the image; padding belongs to no segment.
    """

    def __init__(self, size: tuple[int, int], pad_value: int = PAD_VALUE) -> None:
        self.size = _checked_size('size', size)
        self.pad_value = pad_value

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pads ``img`` and ``gt_segments``.

        Raises:
            ValueError: the image is larger.
        """
        size = results['img'].shape[:2]
        if any(np.greater(size, self.size)):
            raise ValueError(
                f'PadToSize(size={self.size}) got a image of {size} (height, width): '
                f'{results.get("img_path")}. Crop to at most that size before.'
            )
        return _pad(results, self.size, self.pad_value)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, pad_value={self.pad_value})'


def _checked_size(key: str, size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2 or min(size) < 1:
        raise ValueError(f'{key} must be (height, width) in pixels, got {size!r}')
    return int(size[0]), int(size[1])


def _crop(results: dict[str, Any], x: int, y: int, size: tuple[int, int]) -> dict[str, Any]:
    height, width = (min(pair) for pair in zip(results['img'].shape[:2], size, strict=True))
    results['img'] = results['img'][y : y + height, x : x + width]
    if 'gt_segments' in results:
        results['gt_segments'] = results['gt_segments'].crop(x, y, width, height)
    results['img_shape'] = (height, width)
    return results


def _mirrored(img: np.ndarray) -> np.ndarray:
    if img.dtype not in (np.uint8, np.float32):
        return np.ascontiguousarray(img[:, ::-1])
    # Many times as quick as numpy. It drops a third axis of length 1.
    return cv2.flip(img, 1).reshape(img.shape)


def _pad(results: dict[str, Any], size: tuple[int, int], value: int) -> dict[str, Any]:
    img = results['img']
    if img.shape[:2] != size:
        padded = np.full((*size, *img.shape[2:]), value, img.dtype)
        padded[: img.shape[0], : img.shape[1]] = img
        results['img'] = padded
    if 'gt_segments' in results:
        results['gt_segments'] = results['gt_segments'].pad(size)
    results['img_shape'] = results['pad_shape'] = size
    return results
