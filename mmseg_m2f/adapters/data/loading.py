"""Load annotations: segments for detectors, label maps for MMSegmentation."""

from io import BytesIO
from typing import Any

import numpy as np
from mmengine import fileio

from mmseg_m2f.adapters.data.segments import InstanceShapes, SegmentMap
from mmseg_m2f.adapters.data.transforms import Transform
from mmseg_m2f.adapters.errors import name_file_in_errors
from mmseg_m2f.evaluation.panoptic_map import read_ids
from mmseg_m2f.evaluation.rle import import_coco_mask
from mmseg_m2f.registry import TRANSFORMS

# The annotations of a photo are for the stored pixels, its EXIF data may ask for a rotation.
ROTATION_HINT = (
    ". Load photos with color_type='color_ignore_orientation', or remove their EXIF data"
)


@TRANSFORMS.register_module()
class LoadSegments(Transform):
    """Add ``gt_segments`` to a record: its panoptic PNG, or its polygons and masks.

    Place it after ``LoadImageFromFile``. Crowds are left out: their pixels belong to no segment,
    as in all official mappers. The same holds for pixels whose id is not listed.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add a `SegmentMap` or `InstanceShapes`, both of the size of ``img``."""
        load = _segment_map if 'segments_info' in results else _instance_shapes
        try:
            results['gt_segments'] = load(results)
        except KeyError as error:
            raise ValueError(
                f'{results.get("img_path")}: LoadSegments reads records of mmseg_m2f.'
                f'PanopticDataset and InstanceDataset; this record lacks {error}'
            ) from error
        return results


def _segment_map(results: dict[str, Any]) -> SegmentMap:
    path = results['seg_map_path']
    with name_file_in_errors('panoptic PNG', path):
        ids = read_ids(BytesIO(fileio.get(path)))
    _check_size(f'its panoptic PNG {path}', ids.shape, results)
    segments = [segment for segment in results['segments_info'] if not segment['is_crowd']]
    return SegmentMap(
        ids=ids,
        segment_ids=np.array([segment['id'] for segment in segments], np.int32),
        labels=np.array([segment['label'] for segment in segments], np.int64),
        is_thing=np.array([segment['is_thing'] for segment in segments], bool),
        rows=np.arange(ids.shape[0]),
        columns=np.arange(ids.shape[1]),
    )


def _instance_shapes(results: dict[str, Any]) -> InstanceShapes:
    height, width = results['height'], results['width']
    _check_size('its annotation', (height, width), results)
    instances = [instance for instance in results['instances'] if not instance['is_crowd']]
    polygons, bitmaps = {}, {}
    for index, instance in enumerate(instances):
        shape = instance['segmentation']
        if isinstance(shape, list):
            polygons[index] = [np.asarray(p, np.float64).reshape(-1, 2) for p in shape]
            continue
        _check_size('a mask of its annotation', tuple(shape['size']), results)
        if isinstance(shape['counts'], list):
            shape = import_coco_mask().frPyObjects(shape, height, width)
        bitmaps[index] = shape
    return InstanceShapes(
        labels=np.array([instance['label'] for instance in instances], np.int64),
        polygons=polygons,
        bitmaps=bitmaps,
        rows=np.arange(height),
        columns=np.arange(width),
    )


def _check_size(what: str, stated: tuple[int, ...], results: dict[str, Any]) -> None:
    size = results['img'].shape[:2]
    if stated != size:
        raise ValueError(
            f'{results["img_path"]} is of size {size} (height, width), {what} of {stated}'
            f'{ROTATION_HINT if stated == size[::-1] else ""}'
        )


@TRANSFORMS.register_module()
class LoadAnnotationsIfAny(Transform):
    """Run MMSegmentation's ``LoadAnnotations`` if the record names a label map, else do nothing.

    With it, one pipeline serves test-time augmentation with and without ground truth. ``settings``
    are the arguments of MMSegmentation's ``LoadAnnotations``.
    """

    def __init__(self, **settings: Any) -> None:
        self._load = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations', **settings))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        return self._load(results) if results.get('seg_map_path') else results
