"""Parts for mmdet's own tools. mmdet is imported when they are used: semantic models need none."""

from typing import Any

from mmseg_m2f.registry import VISUALIZERS


@VISUALIZERS.register_module(name='Mask2FormerVisualizer')
def build_visualizer(**settings: Any) -> Any:
    """Build the visualizer of our MMDetection configs."""
    from mmseg_m2f.adapters.results.visualizer import Mask2FormerVisualizer

    return Mask2FormerVisualizer.get_instance(**settings)
