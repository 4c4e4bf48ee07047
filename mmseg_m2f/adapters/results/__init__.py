"""Predictions of a test as files: for benchmarks, for programs and for people."""

from mmseg_m2f.adapters.results.drawing import DrawPredictionsHook
from mmseg_m2f.adapters.results.submissions import SaveLabelMapsHook, SaveResultsHook
from mmseg_m2f.adapters.results.visualizer import build_visualizer

__all__ = ['DrawPredictionsHook', 'SaveLabelMapsHook', 'SaveResultsHook', 'build_visualizer']
