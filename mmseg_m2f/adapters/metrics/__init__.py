"""Metrics for MMEngine's evaluator. The numbers themselves come from ``mmseg_m2f.evaluation``.

Each metric compares the pixels of an image as soon as it is predicted, and keeps only counts,
overlaps or run lengths for the end of the test.
"""

from mmseg_m2f.adapters.metrics.cityscapes import CityscapesInstanceMetric
from mmseg_m2f.adapters.metrics.instance import InstanceMetric
from mmseg_m2f.adapters.metrics.panoptic import PanopticMetric
from mmseg_m2f.adapters.metrics.semantic import SemanticMetric

__all__ = ['CityscapesInstanceMetric', 'InstanceMetric', 'PanopticMetric', 'SemanticMetric']
