"""Parts for mmdet's own tools. mmdet is imported when they are used: semantic models need none."""

import sys
from typing import Any

from mmseg_m2f.evaluation.panoptic_map import id2rgb
from mmseg_m2f.registry import VISUALIZERS

VOID = 0


@VISUALIZERS.register_module(name='Mask2FormerVisualizer')
def build_visualizer(**settings: Any) -> Any:
    """Build the visualizer of our MMDetection configs."""
    from mmseg_m2f.adapters.results.visualizer import Mask2FormerVisualizer

    return Mask2FormerVisualizer.get_instance(**settings)


def replace_panopticapi() -> None:
    """Let mmdet's ``DetInferencer`` return panoptic results without the package panopticapi.

    The inferencer takes two names from panopticapi, which no package index has: the id of void
    and the color code of segment ids. Without the package both are None, and it refuses every
    panoptic result. This sets them to the same values, and changes nothing if the package is
    installed or the inferencer is not in use.
    """
    inferencer: Any = sys.modules.get('mmdet.apis.det_inferencer')
    if inferencer is not None and inferencer.VOID is None:
        inferencer.VOID, inferencer.id2rgb = VOID, id2rgb
