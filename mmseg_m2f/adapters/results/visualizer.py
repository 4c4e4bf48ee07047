"""The visualizer of our MMDetection configs. Importing this module imports mmdet."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.visualization import DetLocalVisualizer
from mmdet.visualization.palette import get_palette


class Mask2FormerVisualizer(DetLocalVisualizer):
    """Draw with mmdet's visualizer, and also draw two inputs at which it stops.

    These are a panoptic map without any segment, and a semantic map whose palette is only a name
    (such as ``'random'``) or missing. Arguments are those of ``DetLocalVisualizer``.
    """

    def _draw_panoptic_seg(
        self, image: np.ndarray, panoptic_seg: Any, classes: Sequence[str], palette: Any
    ) -> np.ndarray:
        is_void = np.asarray(panoptic_seg.sem_seg) == len(classes)
        if is_void.all():
            return image
        return super()._draw_panoptic_seg(image, panoptic_seg, classes, palette)

    def _draw_sem_seg(
        self, image: np.ndarray, sem_seg: Any, classes: Sequence[str], palette: Any
    ) -> np.ndarray:
        if palette is None or isinstance(palette, str):
            palette = get_palette(palette, len(classes))
        return super()._draw_sem_seg(image, sem_seg, classes, palette)
