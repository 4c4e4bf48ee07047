"""Turn a record into what a detector reads: an image tensor and a ``DetDataSample``."""

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

from mmseg_m2f.adapters.arrays import to_array
from mmseg_m2f.adapters.data.segments import NO_SEGMENT, InstanceShapes, SegmentMap
from mmseg_m2f.adapters.data.transforms import Transform
from mmseg_m2f.evaluation.panoptic_map import INSTANCE_OFFSET
from mmseg_m2f.registry import TRANSFORMS

META_KEYS = (
    'img_id',
    'img_path',
    'ori_shape',
    'img_shape',
    'scale_factor',
    'flip',
    'flip_direction',
    'seg_map_path',
    'segments_info',
    'label_map_path',
)
IGNORED_LABEL = 255


@TRANSFORMS.register_module()
class PackSegments(Transform):
    """Draw the segments and pack them. Without ``gt_segments`` (in tests) pack only the image.

    Instances become ``gt_instances`` (``bboxes``, ``labels``, ``masks``). Panoptic segments have
    two layouts:

    * ``'segments'``, for our head: ``gt_panoptic_seg.segment_idx`` (1, H, W) int32 is an index
      into ``gt_segments.labels``, or -1.
    * ``'mmdet'``, for MMDetection's own heads: the things as ``gt_instances``, and ``gt_sem_seg``
      with the class of every pixel, 255 where there is none. Only with this layout may the data
      preprocessor pad masks and maps; our head pads its targets itself.

    Images without segments are kept as negatives.

    Args:
        keep_empty: keep segments that a crop has emptied, as masks without a pixel. The official
            code does so, except for COCO instances.
        min_area: with ``keep_empty=False``, drop segments with fewer pixels than this.
        layout: ``'segments'`` or ``'mmdet'``, for panoptic segments.
        meta_keys: keys to copy from the record into the sample's metainfo, where they exist.
    """

    def __init__(
        self,
        keep_empty: bool = True,
        min_area: int = 1,
        layout: Literal['segments', 'mmdet'] = 'segments',
        meta_keys: Sequence[str] = META_KEYS,
    ) -> None:
        if layout not in ('segments', 'mmdet'):
            raise ValueError(f"layout must be 'segments' or 'mmdet', got {layout!r}")
        if min_area < 1 or (keep_empty and min_area > 1):
            raise ValueError(
                f'min_area must be at least 1, and more only with keep_empty=False; got {min_area} '
                f'with keep_empty={keep_empty}'
            )
        self.min_area = 0 if keep_empty else min_area
        self.layout = layout
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``inputs`` (C, H, W) with the image's dtype, and ``data_samples``."""
        # Imported here, because semantic models work without mmdet.
        from mmdet.structures import DetDataSample

        img = results['img']
        if img.ndim == 2:
            img = img[..., None]
        sample = DetDataSample(
            metainfo={key: results[key] for key in self.meta_keys if key in results}
        )
        segments = results.get('gt_segments')
        if segments is not None:
            _check_together(results)
        if isinstance(segments, InstanceShapes):
            masks = segments.masks()
            kept = np.array([np.count_nonzero(mask) >= self.min_area for mask in masks], bool)
            sample.gt_instances = _instance_data(masks[kept], segments.labels[kept])
        elif isinstance(segments, SegmentMap):
            self._add_segments(sample, segments, results.get('num_classes', IGNORED_LABEL))
        channels = np.ascontiguousarray(img.transpose(2, 0, 1))
        return {'inputs': torch.from_numpy(channels), 'data_samples': sample}

    def _add_segments(self, sample: Any, segments: SegmentMap, num_classes: int) -> None:
        index_map, num_segments = segments.index_map(), len(segments.labels)
        areas = np.bincount(index_map.ravel() + 1, minlength=num_segments + 1)[1:]
        kept = np.flatnonzero(areas >= self.min_area)
        # Index -1 takes the last value, here and below.
        new_index = np.full(num_segments + 1, NO_SEGMENT, np.int32)
        new_index[kept] = np.arange(len(kept))
        index_map = new_index[index_map]
        labels, is_thing = segments.labels[kept], segments.is_thing[kept]
        if self.layout == 'mmdet':
            masks = index_map == np.flatnonzero(is_thing)[:, None, None]
            sample.gt_instances = _instance_data(masks, labels[is_thing])
            label_map = np.append(labels, IGNORED_LABEL)[index_map]
            sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(label_map[None]))
            return
        encoded = labels + INSTANCE_OFFSET * is_thing.cumsum() * is_thing
        sample.gt_panoptic_seg = SegmentIndices(
            segment_idx=torch.from_numpy(index_map[None]),
            metainfo={'encoding': (*encoded.tolist(), num_classes)},
        )
        sample.gt_segments = InstanceData(labels=torch.from_numpy(labels))
        # mmdet's data preprocessor and visualizer read gt_instances of every sample.
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)
        )


class SegmentIndices(PixelData):
    """The index map of an image's segments.

    ``segment_idx (1, H, W)`` is stored; ``sem_seg``, for mmdet's visualizer, is computed on access.
    The metainfo ``encoding`` holds each segment's number in mmdet's encoding, and void last.
    """

    @property
    def sem_seg(self) -> np.ndarray:
        """Return ``(1, H, W)`` int32: class + 1000 k for the k-th thing, the bare class for stuff.

        mmdet's visualizer converts predictions to arrays, but not the ground truth.
        """
        return np.array(self.encoding, np.int32)[to_array(self.segment_idx)]


def _instance_data(masks: np.ndarray, labels: np.ndarray) -> InstanceData:
    from mmseg_m2f.adapters.data.patched_masks import PatchedMasks

    masks = masks.view(np.uint8)
    boxes = np.array([cv2.boundingRect(mask) for mask in masks], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        masks=PatchedMasks(masks, *masks.shape[1:]),
    )


def _check_together(results: dict[str, Any]) -> None:
    segments, size = results['gt_segments'], results['img'].shape[:2]
    is_flipped = bool(results.get('flip'))
    if segments.size != size or segments.is_flipped != is_flipped:
        raise ValueError(
            f'{results.get("img_path")}: the image is of size {size} (height, width), flip='
            f'{is_flipped}; its segments are of {segments.size}, flip={segments.is_flipped}. '
            'A transform moved only one of them. Use mmseg_m2f.RandomFlip, RandomCrop, '
            'FixedSizeCrop, PadToSize, ResizeScale, ResizeShortestEdge and ResizeAndCrop.'
        )
