"""A record to what the detectors read: the image's tensor and a ``DetDataSample``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData, PixelData

from mmseg_m2f.adapters.data.segments import NO_SEGMENT, InstanceShapes, SegmentMap, paste
from mmseg_m2f.evaluation.panoptic_map import INSTANCE_OFFSET
from mmseg_m2f.registry import TRANSFORMS

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample

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
class PackSegments(BaseTransform):
    """Draws the segments and packs them; without ``gt_segments`` (in tests) only the image.

    Instances become ``gt_instances`` (``bboxes``, ``labels``, ``masks``). Panoptic segments become
    ``gt_panoptic_seg.segment_idx`` (1, H, W) int32, an index into ``gt_segments.labels`` or -1,
    or what MMDetection's own heads read: the things as ``gt_instances``, and ``gt_sem_seg`` with
    the class of every pixel, 255 where there is none. Only with the latter may the data
    preprocessor be told to pad masks and maps; our head pads its targets itself.

    A image whose segments are all gone stays: it shows the model what is none of its classes.

    Args:
        keep_empty: keep what a crop emptied, with a mask of no pixel. The official code does so
            except for COCO instances.
        min_area: where empty ones are not kept, so many pixels a segment must have left.
        layout: of panoptic segments, ``'segments'`` (ours) or ``'mmdet'``.
        meta_keys: what the sample's metainfo takes from the record, where it is there.
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
        # The smallest segment that stays.
        self.min_area = 0 if keep_empty else min_area
        self.layout = layout
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """``inputs`` (C, H, W) of the image's type, and ``data_samples``.

        Raises:
            ValueError: a transform moved the image and not its segments.
        """
        # Semantic models do without mmdet.
        from mmdet.structures import DetDataSample

        img = results['img']
        if img.ndim == 2:
            img = img[..., None]
        sample = DetDataSample(
            metainfo={key: results[key] for key in self.meta_keys if key in results}
        )
        if 'gt_segments' in results:
            _check_together(results)
            num_classes = results.get('num_classes', IGNORED_LABEL)
            self._add_segments(sample, results['gt_segments'], num_classes)
        return {'inputs': torch.from_numpy(channels_first(img)), 'data_samples': sample}

    def _add_segments(
        self, sample: 'DetDataSample', segments: SegmentMap | InstanceShapes, num_classes: int
    ) -> None:
        if isinstance(segments, InstanceShapes):
            patches = segments.patches()
            areas = np.array([np.count_nonzero(patch.pixels) for patch in patches], int)
            stays = np.flatnonzero(areas >= self.min_area)
            patches = [patches[index] for index in stays]
            boxes = np.array([patch.box() for patch in patches], np.float32).reshape(-1, 4)
            masks, labels = paste(patches, segments.size), segments.labels[stays]
            sample.gt_instances = _instance_data(masks, boxes, labels)
            return
        index_map, kept = segments.index_map(), np.arange(len(segments.labels))
        if self.min_area > 0:
            index_map, kept = _without_small(index_map, len(kept), self.min_area)
        labels, is_thing = segments.labels[kept], segments.is_thing[kept]
        if self.layout == 'segments':
            sample.gt_panoptic_seg = SegmentIndices(
                segment_idx=torch.from_numpy(index_map[None]),
                metainfo={'encoding': (*_encoded(labels, is_thing), num_classes)},
            )
            sample.gt_segments = InstanceData(labels=torch.from_numpy(labels))
            # mmdet's data preprocessor and drawing take it for granted.
            sample.gt_instances = _no_instances()
            return
        masks = index_map == np.flatnonzero(is_thing)[:, None, None]
        sample.gt_instances = _instance_data(masks, mask_boxes(masks), labels[is_thing])
        # The value at index -1 serves the pixels without a segment.
        label_map = np.append(labels, IGNORED_LABEL)[index_map]
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(label_map[None]))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(min_area={self.min_area}, layout={self.layout!r}, '
            f'meta_keys={self.meta_keys})'
        )


class SegmentIndices(PixelData):
    """``segment_idx (1, H, W)``, and for mmdet's drawing ``sem_seg``, made when it is asked for.

    The metainfo ``encoding`` has the number of each segment in mmdet's encoding, void last.
    """

    @property
    def sem_seg(self) -> np.ndarray:
        """``(1, H, W)`` int32: class + 1000 k for the k-th thing, the bare class for stuff.

        An array, as the drawing takes the truth: it turns but predictions into arrays.
        """
        # The value at index -1 serves the pixels without a segment.
        return np.array(self.encoding, np.int32)[
            np.asarray(torch.as_tensor(self.segment_idx).cpu())
        ]


def channels_first(img: np.ndarray) -> np.ndarray:
    """The image (H, W, C) as (C, H, W), contiguous."""
    if img.dtype not in (np.uint8, np.float32):
        return np.ascontiguousarray(img.transpose(2, 0, 1))
    # Many times as quick as numpy, which copies number by number.
    planes = np.empty((img.shape[2], *img.shape[:2]), img.dtype)
    for channel, plane in enumerate(planes):
        cv2.extractChannel(img, channel, plane)
    return planes


def _encoded(labels: np.ndarray, is_thing: np.ndarray) -> list[int]:
    return (labels + INSTANCE_OFFSET * is_thing.cumsum() * is_thing).tolist()


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """(N, 4) float32 ``x1 y1 x2 y2``, right and bottom exclusive; 0 for an empty mask."""
    sides = [np.any(masks, axis=axis) for axis in (1, 2)]
    first = [side.argmax(axis=1) for side in sides]
    end = [side.shape[1] - side[:, ::-1].argmax(axis=1) for side in sides]
    boxes = np.stack([*first, *end], axis=1).astype(np.float32)
    boxes[~np.any(masks, axis=(1, 2))] = 0
    return boxes


def _no_instances() -> InstanceData:
    return InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


def _instance_data(masks: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> InstanceData:
    from mmseg_m2f.adapters.data.patched_masks import PatchedMasks

    return InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        masks=PatchedMasks(masks.view(np.uint8), *masks.shape[1:]),
    )


def _without_small(
    index_map: np.ndarray, num_segments: int, min_area: int
) -> tuple[np.ndarray, np.ndarray]:
    """The map with the remaining segments renumbered, and their former indices."""
    areas = np.bincount(index_map.ravel() + 1, minlength=num_segments + 1)[1:]
    kept = np.flatnonzero(areas >= min_area)
    new_index = np.full(num_segments + 1, NO_SEGMENT, np.int32)
    new_index[kept] = np.arange(len(kept))
    return new_index[index_map], kept


def _check_together(results: dict[str, Any]) -> None:
    segments, size = results['gt_segments'], results['img'].shape[:2]
    if segments.size != size or segments.is_flipped != bool(results.get('flip')):
        raise ValueError(
            f'{results.get("img_path")}: the image is of size {size} (height, width), flip='
            f'{bool(results.get("flip"))}; its segments are of {segments.size}, flip='
            f'{segments.is_flipped}. A transform moved but one of them: use mmseg_m2f.RandomFlip, '
            'RandomCrop, FixedSizeCrop, PadToSize, ResizeScale and ResizeShortestEdge.'
        )
