"""Predictions of a test as files: for benchmarks, for programs and for people."""

from mmseg_m2f.adapters.results.label_maps import SaveLabelMapsHook
from mmseg_m2f.adapters.results.mmdet_parts import build_visualizer
from mmseg_m2f.adapters.results.overlays import DrawPredictionsHook
from mmseg_m2f.adapters.results.submissions import SaveResultsHook

__all__ = ['DrawPredictionsHook', 'SaveLabelMapsHook', 'SaveResultsHook', 'build_visualizer']
