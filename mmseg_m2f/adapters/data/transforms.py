"""Transforms of the official code. They move an image, its label maps and its segments together.

They read and write ``img`` (uint8), every label map that ``seg_fields`` names, and ``gt_segments``.
Random numbers come from NumPy's global generator, which MMEngine seeds in each worker.

Source: detectron2 data/transforms/augmentation_impl.py, for the classes with the names used there.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from mmcv.transforms import BaseTransform

from mmseg_m2f.adapters.data.resizing import Box, Size, resized_image, resized_labels
from mmseg_m2f.registry import TRANSFORMS

Record = dict[str, Any]


class Transform(BaseTransform):
    """A transform that is printed with its attributes, in the order in which they were set."""

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


class Resize(Transform):
    """The part common to `ResizeScale` and `ResizeShortestEdge`."""

    def __init__(self, backend: str) -> None:
        if backend not in ('pillow', 'cv2'):
            raise ValueError(f"backend must be 'pillow' or 'cv2', got {backend!r}")
        self.backend = backend

    def draw_size(self, size: Size) -> Size:
        """Return the new (height, width) of an image of this size."""
        raise NotImplementedError

    def transform(self, results: Record, crop: 'RandomCrop | None' = None) -> Record:
        """Resize, and keep only what ``crop`` keeps."""
        old_height, old_width = results['img'].shape[:2]
        height, width = size = self.draw_size((old_height, old_width))
        box = Box(0, 0, width, height) if crop is None else crop.draw_box(size)
        results['img'] = resized_image(results['img'], size, box, self.backend)
        for key in results.get('seg_fields', []):
            results[key] = resized_labels(results[key], size, box)
        if 'gt_segments' in results:
            results['gt_segments'] = results['gt_segments'].resize(size).crop(*box)
        results['img_shape'] = (box.height, box.width)
        results['scale'] = (width, height)
        results['scale_factor'] = (width / old_width, height / old_height)
        results['keep_ratio'] = True
        return results


@TRANSFORMS.register_module()
class ResizeScale(Resize):
    """Fit the image into a target of random scale, and keep the ratio of its sides.

    Args:
        min_scale, max_scale: the target size is multiplied by a number drawn between the two.
        target_size: (height, width) in pixels.
        backend: filter of the image, ``'pillow'`` (smooths when it shrinks, as the official code
            does) or ``'cv2'`` (does not).
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_size: Size,
        backend: Literal['pillow', 'cv2'] = 'pillow',
    ) -> None:
        if not 0 < min_scale <= max_scale:
            raise ValueError(f'0 < min_scale <= max_scale needed, got {min_scale}, {max_scale}')
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_size = _checked_size('target_size', target_size)
        super().__init__(backend)

    def draw_size(self, size: Size) -> Size:
        scale = np.random.uniform(self.min_scale, self.max_scale)
        factor = min(np.multiply(self.target_size, scale) / size)
        height, width = (max(int(length), 1) for length in np.round(np.multiply(size, factor)))
        return height, width


@TRANSFORMS.register_module()
class ResizeShortestEdge(Resize):
    """Resize to a given short side.

    Label maps take source pixel ``floor(i * old / new)``. MMSegmentation's transform of the same
    name resizes image and labels by OpenCV.

    Args:
        scale: the short side in pixels, or a list to draw one from with equal probability.
        max_size: limit of the long side in pixels. If it is reached, the short side gets smaller.
        backend: as in `ResizeScale`.
    """

    def __init__(self, scale: int | Sequence[int], max_size: int, backend: str = 'pillow') -> None:
        self.scale = scale
        self.max_size = max_size
        super().__init__(backend)

    def draw_size(self, size: Size) -> Size:
        scale = self.scale
        if isinstance(scale, Sequence):
            scale = scale[np.random.randint(len(scale))]
        factor = scale / min(size)
        long_side = factor * max(size)
        if long_side > self.max_size:
            factor *= self.max_size / long_side
        # A half is rounded up.
        return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


@TRANSFORMS.register_module()
class PadToSize(Transform):
    """Pad at the right and the bottom. Padding belongs to no segment.

    Args:
        size: (height, width) in pixels. No image may be larger.
        pad_value, seg_pad_value: value of padded pixels in the image and in label maps.
    """

    def __init__(self, size: Size, pad_value: int = 128, seg_pad_value: int = 255) -> None:
        self.size = _checked_size('size', size)
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def transform(self, results: Record) -> Record:
        size = results['img'].shape[:2]
        if any(np.greater(size, self.size)):
            raise ValueError(
                f'PadToSize(size={self.size}) got an image of {size} (height, width): '
                f'{results.get("img_path")}. Crop to at most this size before.'
            )
        for key in ('img', *results.get('seg_fields', [])):
            pixels = results[key]
            value = self.pad_value if key == 'img' else self.seg_pad_value
            results[key] = np.full((*self.size, *pixels.shape[2:]), value, pixels.dtype)
            results[key][: size[0], : size[1]] = pixels
        if 'gt_segments' in results:
            results['gt_segments'] = results['gt_segments'].pad(self.size)
        results['img_shape'] = results['pad_shape'] = self.size
        return results


@TRANSFORMS.register_module()
class RandomCrop(Transform):
    """Crop at random to ``crop_size``; a side of the image that is smaller stays as it is.

    It is detectron2's ``RandomCrop`` of type "absolute". The official recipes also limit the share
    of one class in a crop, but to 1, which has no effect.
    """

    def __init__(self, crop_size: Size) -> None:
        self.crop_size = _checked_size('crop_size', crop_size)

    def draw_offset(self, room: np.ndarray) -> Sequence[int]:
        """Return upper row and left column; ``room (2,)`` is the largest value of each."""
        return [int(np.random.randint(length + 1)) for length in room]

    def draw_box(self, size: Size) -> Box:
        """Return the part to keep of an image of this size (height, width)."""
        y, x = self.draw_offset(np.maximum(np.subtract(size, self.crop_size), 0))
        height, width = np.minimum(size, self.crop_size).tolist()
        return Box(x, y, width, height)

    def fill(self, results: Record) -> Record:
        """Pad a crop that is smaller than ``crop_size``, if this transform pads."""
        return results

    def transform(self, results: Record) -> Record:
        box = self.draw_box(results['img'].shape[:2])
        rows, columns = slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)
        for key in ('img', *results.get('seg_fields', [])):
            results[key] = results[key][rows, columns]
        if 'gt_segments' in results:
            results['gt_segments'] = results['gt_segments'].crop(*box)
        results['img_shape'] = (box.height, box.width)
        return self.fill(results)


@TRANSFORMS.register_module()
class FixedSizeCrop(RandomCrop):
    """Crop at random to exactly this size; pad a smaller image as `PadToSize` does.

    Args:
        crop_size, pad_value, seg_pad_value: as in `PadToSize`.
        offsets: ``'shared'`` draws one number for both axes, as the official code does, so all
            crops lie on the diagonal of the image. ``'independent'`` draws one for each axis.
    """

    def __init__(
        self,
        crop_size: Size,
        pad_value: int = 128,
        offsets: Literal['shared', 'independent'] = 'shared',
        seg_pad_value: int = 255,
    ) -> None:
        super().__init__(crop_size)
        if offsets not in ('shared', 'independent'):
            raise ValueError(f"offsets must be 'shared' or 'independent', got {offsets!r}")
        self.offsets = offsets
        self.pad = PadToSize(crop_size, pad_value, seg_pad_value)

    def draw_offset(self, room: np.ndarray) -> Sequence[int]:
        share = np.random.uniform(size=1 if self.offsets == 'shared' else 2)
        return np.round(room * share).astype(int).tolist()

    def fill(self, results: Record) -> Record:
        return self.pad.transform(results)


@TRANSFORMS.register_module()
class ResizeAndCrop(Transform):
    """Resize and crop in one step: the same pixels as one after the other, in less time.

    Both steps draw their random numbers as they do alone, the resize first.

    Args:
        resize: config of ``mmseg_m2f.ResizeShortestEdge`` or ``mmseg_m2f.ResizeScale``.
        crop: config of ``mmseg_m2f.RandomCrop`` or ``mmseg_m2f.FixedSizeCrop``.
    """

    def __init__(self, resize: dict[str, Any], crop: dict[str, Any]) -> None:
        self.resize, self.crop = TRANSFORMS.build(resize), TRANSFORMS.build(crop)
        if not isinstance(self.resize, Resize):
            raise ValueError(f'resize must be our ResizeShortestEdge or ResizeScale, got {resize}')
        if not isinstance(self.crop, RandomCrop):
            raise ValueError(f'crop must be our RandomCrop or FixedSizeCrop, got {crop}')

    def transform(self, results: Record) -> Record:
        return self.crop.fill(self.resize.transform(results, self.crop))


@TRANSFORMS.register_module()
class RandomFlip(Transform):
    """Swap left and right with probability ``prob``; write ``flip`` and ``flip_direction``."""

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be from 0 to 1, got {prob}')
        self.prob = prob

    def transform(self, results: Record) -> Record:
        results['flip'] = bool(np.random.uniform() < self.prob)
        results['flip_direction'] = 'horizontal' if results['flip'] else None
        if results['flip']:
            for key in ('img', *results.get('seg_fields', [])):
                results[key] = np.ascontiguousarray(results[key][:, ::-1])
            if 'gt_segments' in results:
                results['gt_segments'] = results['gt_segments'].flip()
        return results


def _checked_size(key: str, size: Size) -> Size:
    if not isinstance(size, tuple | list) or len(size) != 2 or min(size) < 1:
        raise ValueError(f'{key} must be (height, width) in pixels, got {size!r}')
    return int(size[0]), int(size[1])
