"""The visualizer of our MMDetection configs."""

import functools
from typing import Any

import numpy as np

from mmseg_m2f.registry import VISUALIZERS


@VISUALIZERS.register_module(name='Mask2FormerVisualizer')
def build_visualizer(**settings: Any) -> Any:
    """Build mmdet's ``DetLocalVisualizer``, which also draws two inputs at which mmdet's stops.

    They are a panoptic map without a segment, and a semantic map without colors (``'random'``).
    """
    return _visualizer_class().get_instance(**settings)


@functools.cache
def _visualizer_class() -> Any:
    # Semantic models need no mmdet.
    from mmdet.visualization import DetLocalVisualizer
    from mmdet.visualization.palette import get_palette

    class Mask2FormerVisualizer(DetLocalVisualizer):
        def _draw_panoptic_seg(self, image: Any, seg: Any, classes: Any, palette: Any) -> Any:
            if (np.asarray(seg.sem_seg) == len(classes)).all():  # only void
                return image
            return super()._draw_panoptic_seg(image, seg, classes, palette)

        def _draw_sem_seg(self, image: Any, seg: Any, classes: Any, palette: Any) -> Any:
            if palette is None or isinstance(palette, str):
                palette = get_palette(palette, len(classes))
            return super()._draw_sem_seg(image, seg, classes, palette)

    return Mask2FormerVisualizer
