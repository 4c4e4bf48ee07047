"""Turn the annotations of a record into ``gt_segments``."""

from io import BytesIO
from typing import Any

import numpy as np
from mmengine import fileio

from mmseg_m2f.adapters.data.segments import InstanceShapes, SegmentMap
from mmseg_m2f.adapters.data.transform import Transform
from mmseg_m2f.adapters.errors import errors_name
from mmseg_m2f.evaluation.panoptic_map import read_ids
from mmseg_m2f.evaluation.rle import import_coco_mask
from mmseg_m2f.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadSegments(Transform):
    """Load the panoptic PNG, or the polygons and masks, of a record.

    Place it after ``LoadImageFromFile``. Crowds are left out: their pixels belong to no segment,
    as in all official mappers. The same holds for pixels whose id is not listed.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``gt_segments``: a `SegmentMap` or `InstanceShapes`.

        Raises:
            ValueError: the record comes from another data set, or its annotations have another
                size than the image.
            OSError: the panoptic PNG is missing or broken.
        """
        size = results['img'].shape[:2]
        read = _segment_map if 'segments_info' in results else _instance_shapes
        try:
            results['gt_segments'] = read(results, size)
        except KeyError as error:
            raise ValueError(
                f'{results.get("img_path")}: LoadSegments reads records of '
                'mmseg_m2f.PanopticDataset and mmseg_m2f.InstanceDataset; this record lacks '
                f'{error}'
            ) from error
        return results


def _segment_map(results: dict[str, Any], size: tuple[int, int]) -> SegmentMap:
    path = results['seg_map_path']
    with errors_name('panoptic PNG', path):
        ids = read_ids(BytesIO(fileio.get(path)))
    if ids.shape != size:
        raise ValueError(
            f'{path} is of size {ids.shape} (height, width), its image {results["img_path"]} '
            f'of {size}{_rotation_hint(ids.shape, size)}'
        )
    segments = [segment for segment in results['segments_info'] if not segment['is_crowd']]
    return SegmentMap(
        ids=ids,
        segment_ids=np.array([segment['id'] for segment in segments], np.int32),
        labels=np.array([segment['label'] for segment in segments], np.int64),
        is_thing=np.array([segment['is_thing'] for segment in segments], bool),
        rows=np.arange(size[0]),
        columns=np.arange(size[1]),
    )


def _instance_shapes(results: dict[str, Any], size: tuple[int, int]) -> InstanceShapes:
    stated = results['height'], results['width']
    if stated != size:
        raise ValueError(
            f'{results["img_path"]} is of size {size} (height, width), its annotations of '
            f'{stated}{_rotation_hint(stated, size)}'
        )
    instances = [instance for instance in results['instances'] if not instance['is_crowd']]
    polygons, bitmaps = {}, {}
    for index, instance in enumerate(instances):
        shape = instance['segmentation']
        if isinstance(shape, dict):
            bitmaps[index] = _compressed(shape, size, results['img_path'])
        else:
            polygons[index] = [np.asarray(p, np.float64).reshape(-1, 2) for p in shape]
    return InstanceShapes(
        labels=np.array([instance['label'] for instance in instances], np.int64),
        polygons=polygons,
        bitmaps=bitmaps,
        rows=np.arange(size[0]),
        columns=np.arange(size[1]),
    )


def _rotation_hint(annotated: tuple[int, ...], size: tuple[int, int]) -> str:
    """Explain a swapped height and width."""
    if annotated != size[::-1]:
        return ''
    return (
        '. The EXIF data of a photo may ask for a rotation, while its annotations are for the '
        "stored pixels. Load it with dict(type='LoadImageFromFile', "
        "color_type='color_ignore_orientation'), or save the photo without EXIF data"
    )


def _compressed(rle: dict[str, Any], size: tuple[int, int], img_path: str) -> dict[str, Any]:
    if tuple(rle['size']) != size:
        raise ValueError(
            f'{img_path} is of size {size} (height, width), a mask of its annotations of '
            f'{tuple(rle["size"])}'
        )
    is_compressed = not isinstance(rle['counts'], list)
    return rle if is_compressed else import_coco_mask().frPyObjects(rle, *size)
