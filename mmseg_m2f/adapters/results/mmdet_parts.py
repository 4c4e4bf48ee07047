"""The visualizer for mmdet's tools. Only using it imports mmdet: semantic models need none."""

from typing import Any

from mmseg_m2f.registry import VISUALIZERS


@VISUALIZERS.register_module(name='Mask2FormerVisualizer')
def build_visualizer(**settings: Any) -> Any:
    """Build the visualizer of our MMDetection configs."""
    from mmseg_m2f.adapters.results.visualizer import Mask2FormerVisualizer

    return Mask2FormerVisualizer.get_instance(**settings)
