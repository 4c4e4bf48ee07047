"""What mmdet's own entry points lack to show panoptic results. Importing this imports mmdet."""

import functools
import sys
from typing import Any

import numpy as np
from mmdet.visualization import DetLocalVisualizer
from mmdet.visualization.palette import get_palette

from mmseg_m2f.evaluation.panoptic_map import id2rgb

VOID = 0


def fill_gaps() -> None:
    """Called by the detector as it is built: before that nothing of mmdet is touched.

    ``DetInferencer`` stops at a panoptic result unless panopticapi, which no package index has,
    gave it a void value and a color code: it gets ours if it has none. It builds its model
    itself, so its module is imported by now. ``DetLocalVisualizer`` stops at a panoptic map
    without a segment, and at a semantic map if the palette is but a name.
    """
    inferencer: Any = sys.modules.get('mmdet.apis.det_inferencer')
    if inferencer is not None and inferencer.VOID is None:
        inferencer.VOID, inferencer.id2rgb = VOID, id2rgb
    for name, mend in (('_draw_panoptic_seg', _mend_panoptic), ('_draw_sem_seg', _mend_semantic)):
        draw = getattr(DetLocalVisualizer, name)
        if not hasattr(draw, '__wrapped__'):
            setattr(DetLocalVisualizer, name, mend(draw))


def _mend_panoptic(draw: Any) -> Any:
    @functools.wraps(draw)
    def draw_segments(
        self: Any, image: np.ndarray, panoptic_seg: Any, classes: Any, palette: Any
    ) -> np.ndarray:
        if (np.asarray(panoptic_seg.sem_seg) == len(classes)).all():
            return image
        return draw(self, image, panoptic_seg, classes, palette)

    return draw_segments


def _mend_semantic(draw: Any) -> Any:
    @functools.wraps(draw)
    def draw_classes(
        self: Any, image: np.ndarray, sem_seg: Any, classes: Any, palette: Any
    ) -> np.ndarray:
        if palette is None or isinstance(palette, str):
            palette = get_palette(palette, len(classes))
        return draw(self, image, sem_seg, classes, palette)

    return draw_classes
