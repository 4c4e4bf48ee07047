"""Data sets and transforms.

An instance or panoptic data set reads COCO's formats, whatever categories they have. In a pipeline
``LoadSegments`` turns the annotations of a record into ``gt_segments``, the transforms move these
together with the image, and ``PackSegments`` draws the masks once, at the final size.
"""

from mmseg_m2f.adapters.data.instance import InstanceDataset
from mmseg_m2f.adapters.data.label_maps import LoadAnnotationsIfAny, ResizeShortestEdge
from mmseg_m2f.adapters.data.loading import LoadSegments
from mmseg_m2f.adapters.data.packing import PackSegments
from mmseg_m2f.adapters.data.panoptic import PanopticDataset
from mmseg_m2f.adapters.data.photometric import PhotoMetricDistortion
from mmseg_m2f.adapters.data.resize_and_crop import ResizeAndCrop
from mmseg_m2f.adapters.data.segment_transforms import (
    FixedSizeCrop,
    PadToSize,
    RandomCrop,
    RandomFlip,
    ResizeScale,
)
from mmseg_m2f.adapters.data.segments import InstanceShapes, SegmentMap
from mmseg_m2f.adapters.data.semantic import build_semantic_dataset

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
