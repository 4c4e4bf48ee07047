"""Data sets and transforms.

An instance or panoptic data set reads COCO's formats, whatever categories they have. In a pipeline
``LoadSegments`` turns the annotations of a record into ``gt_segments``, the transforms move these
together with the image, and ``PackSegments`` draws the masks once, at the final size.
"""

from mmseg_m2f.adapters.data.coco_datasets import InstanceDataset, PanopticDataset
from mmseg_m2f.adapters.data.loading import LoadAnnotationsIfAny, LoadSegments
from mmseg_m2f.adapters.data.packing import PackSegments
from mmseg_m2f.adapters.data.photometric import PhotoMetricDistortion
from mmseg_m2f.adapters.data.segments import InstanceShapes, SegmentMap
from mmseg_m2f.adapters.data.semantic import build_semantic_dataset
from mmseg_m2f.adapters.data.transforms import (
    FixedSizeCrop,
    PadToSize,
    RandomCrop,
    RandomFlip,
    ResizeAndCrop,
    ResizeScale,
    ResizeShortestEdge,
)

__all__ = [
    'FixedSizeCrop',
    'InstanceDataset',
    'InstanceShapes',
    'LoadAnnotationsIfAny',
    'LoadSegments',
    'PackSegments',
    'PadToSize',
    'PanopticDataset',
    'PhotoMetricDistortion',
    'RandomCrop',
    'RandomFlip',
    'ResizeAndCrop',
    'ResizeScale',
    'ResizeShortestEdge',
    'SegmentMap',
    'build_semantic_dataset',
]
