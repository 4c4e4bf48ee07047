"""Data transforms that MMSegmentation lacks."""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from mmseg_m2f.adapters.data.segment_transforms import checked_backend, resize
from mmseg_m2f.adapters.data.segments import gather
from mmseg_m2f.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ResizeShortestEdge(BaseTransform):
    """Resizes as the official code: images with PIL, label maps by the floor rule.

    PIL's bilinear filter smooths when it shrinks, OpenCV's does not. A label is taken from
    source pixel ``floor(i * source / target)``; PIL's ``nearest`` is centred. MMSegmentation's
    transform of this name uses OpenCV for both.

    Args:
        scale: length of the short side in pixels. ``RandomChoiceResize`` sets it anew each time.
        max_size: limit of the long side in pixels; where it is reached the short side shrinks.
        backend: of the image's filter, ``'pillow'`` or, without smoothing, ``'cv2'``.
        deferred: resize no more than the next transform, a crop, will keep: the same pixels
            sooner. MMSegmentation's ``RandomCrop`` is one.

    Source: detectron2 data/transforms/augmentation_impl.py, ``ResizeShortestEdge``.
    """

    def __init__(
        self, scale: int, max_size: int, backend: str = 'pillow', deferred: bool = False
    ) -> None:
        self.scale = scale
        self.max_size = max_size
        self.backend = checked_backend(backend, deferred)
        self.deferred = deferred

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resizes ``img`` (uint8), every label map named in ``seg_fields``, and ``gt_segments``."""
        height, width = results['img'].shape[:2]
        new_height, new_width = shortest_edge_size(height, width, self.scale, self.max_size)
        for key in results.get('seg_fields', []):
            results[key] = _resize_labels(results[key], (new_height, new_width))
        return resize(results, (new_height, new_width), self.backend, self.deferred)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(scale={self.scale}, max_size={self.max_size}, '
            f'backend={self.backend!r}, deferred={self.deferred})'
        )


def _resize_labels(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # In whole numbers: where i * source / target is one, OpenCV's rounding may miss it.
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(label_map.shape[:2], size, strict=True)
    )
    return gather(label_map, rows, columns)


def shortest_edge_size(height: int, width: int, scale: int, max_size: int) -> tuple[int, int]:
    """(height, width) with short side ``scale`` and no side beyond ``max_size``, halves up."""
    factor = scale / min(height, width)
    long_side = factor * max(height, width)
    if long_side > max_size:
        factor *= max_size / long_side
    return int(height * factor + 0.5), int(width * factor + 0.5)


@TRANSFORMS.register_module()
class LoadAnnotationsIfAny(BaseTransform):
    """MMSegmentation's ``LoadAnnotations`` where there is a label map, else nothing.

    Test-time augmentation of images without ground truth needs no other pipeline.

    Args:
        settings: arguments of MMSegmentation's ``LoadAnnotations``.
    """

    def __init__(self, **settings: Any) -> None:
        self._load = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations', **settings))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds ``gt_seg_map`` if ``results`` has a ``seg_map_path``."""
        return self._load(results) if results.get('seg_map_path') else results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self._load})'
