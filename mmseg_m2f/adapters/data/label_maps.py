"""Transforms for semantic segmentation that MMSegmentation lacks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmseg_m2f.adapters.data.resize_and_crop import checked_backend, resize_part
from mmseg_m2f.adapters.data.transform import Transform
from mmseg_m2f.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ResizeShortestEdge(Transform):
    """Resize to a given short side, as the official code does.

    Pillow's bilinear filter smooths when it shrinks an image, OpenCV's does not. Labels take
    source pixel ``floor(i * old / new)``. MMSegmentation's transform of the same name uses OpenCV
    for both.

    Args:
        scale: the short side in pixels, or a list to draw one from with equal probability.
        max_size: limit of the long side in pixels. If it is reached, the short side gets smaller.
        backend: filter of the image, ``'pillow'`` (smooths) or ``'cv2'`` (does not).

    Source: detectron2 data/transforms/augmentation_impl.py, ``ResizeShortestEdge``.
    """

    def __init__(self, scale: int | Sequence[int], max_size: int, backend: str = 'pillow') -> None:
        # RandomChoiceResize of mmcv assigns another scale before each call.
        self.scale = scale
        self.max_size = max_size
        self.backend = checked_backend(backend)

    def draw_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the new (height, width) of an image of this size."""
        scale = self.scale
        if isinstance(scale, Sequence):
            scale = scale[np.random.randint(len(scale))]
        return shortest_edge_size(*size, scale, self.max_size)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize ``img`` (uint8), every label map in ``seg_fields``, and ``gt_segments``."""
        size = self.draw_size(results['img'].shape[:2])
        return resize_part(results, size, backend=self.backend)


def shortest_edge_size(height: int, width: int, scale: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) with short side ``scale`` and no side above ``max_size``.

    A half is rounded up.
    """
    factor = scale / min(height, width)
    long_side = factor * max(height, width)
    if long_side > max_size:
        factor *= max_size / long_side
    return int(height * factor + 0.5), int(width * factor + 0.5)


@TRANSFORMS.register_module()
class LoadAnnotationsIfAny(Transform):
    """Run MMSegmentation's ``LoadAnnotations`` if the record names a label map, else do nothing.

    With it, one pipeline serves test-time augmentation with and without ground truth.

    Args:
        settings: arguments of MMSegmentation's ``LoadAnnotations``.
    """

    def __init__(self, **settings: Any) -> None:
        self._load = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations', **settings))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``gt_seg_map`` if ``results`` has a ``seg_map_path``."""
        return self._load(results) if results.get('seg_map_path') else results
