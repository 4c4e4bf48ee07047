"""Panoptic maps: mmdet's encoding of predictions, and the PNG files of COCO's panoptic format."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

# mmdet's encoding: class + 1000 * k for the k-th thing, the bare class for stuff.
INSTANCE_OFFSET = 1000

File = str | PathLike[str] | BinaryIO


class Segments(NamedTuple):
    """A image cut into segments: ``segment_map (H, W)`` int32 and ``labels (N,)``.

    The map holds 0 for void and ``i + 1`` for the pixels of the segment with ``labels[i]``.
    """

    segment_map: np.ndarray
    labels: np.ndarray


class AnnotatedSegments(NamedTuple):
    """Ground truth: `Segments`, and for each whether it is a crowd, a group without borders.

    ``areas (N,)`` are the pixels that the annotation file states, None to count those of the map.
    """

    segment_map: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray | None = None


def decode_panoptic(sem_seg: np.ndarray, num_classes: int) -> Segments:
    """The segments of a map ``(H, W)`` in mmdet's encoding, where ``num_classes`` is void.

    The ids are consecutive; one without pixels does not exist.

    Raises:
        ValueError: the map holds a class that the data set does not have.
    """
    values = np.asarray(sem_seg)
    if values.min(initial=0) < 0:
        raise ValueError(f'a panoptic map must not be negative, got {values.min()}')
    present = np.flatnonzero(np.bincount(values.ravel()))
    present = present[present != num_classes]
    labels = present % INSTANCE_OFFSET
    if labels.max(initial=0) >= num_classes:
        raise ValueError(
            f'the panoptic map holds class {labels.max()}, the data set has {num_classes} classes: '
            'model and data set must have the same classes'
        )
    return Segments(_renumbered(values, present), labels)


def read_segments(
    file: File, segments_info: Sequence[Mapping[str, Any]], stated_areas: bool = False
) -> AnnotatedSegments:
    """The segments of a panoptic PNG.

    ``segments_info`` gives per segment ``id``, ``label`` (the class index) and ``is_crowd``, and
    with ``stated_areas`` its ``area``. Pixels whose id it does not list are void.

    Raises:
        ValueError: the image holds no ids, or an area is stated that no segment can have.
    """
    ids = np.array([info['id'] for info in segments_info], np.int64)
    labels = np.array([info['label'] for info in segments_info], np.int64)
    is_crowd = np.array([info['is_crowd'] for info in segments_info], bool)
    segment_map = _renumbered(read_ids(file), ids)
    areas = _stated_areas(segment_map, segments_info) if stated_areas else None
    return AnnotatedSegments(segment_map, labels, is_crowd, areas)


def _stated_areas(
    segment_map: np.ndarray, segments_info: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    counted = np.bincount(segment_map.ravel(), minlength=1 + len(segments_info))[1:].tolist()
    for info, pixels in zip(segments_info, counted, strict=True):
        area = info.get('area')
        is_number = isinstance(area, int | float) and area == area // 1
        if not is_number or area < pixels:
            raise ValueError(
                f'the annotation states the area {area!r} of segment {info["id"]}, which has '
                f'{pixels} pixels here. It must be a number of pixels, at least these; without '
                'stated_areas=True the pixels are counted'
            )
    return np.array([info['area'] for info in segments_info], np.int64)


def _renumbered(values: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """1, 2, ... for the values in ``listed``, 0 for all others."""
    # A table is many times faster than sorting the pixels; its pages without ids cost nothing.
    size = 1 + max(values.max(initial=0), listed.max(initial=0))
    table = np.zeros(size, np.int32)
    table[listed] = np.arange(1, len(listed) + 1)
    return table[values]


def read_ids(file: File) -> np.ndarray:
    """The segment ids ``(H, W)`` of a panoptic PNG.

    Raises:
        ValueError: the image has no colors, so its values are no ids.
    """
    with Image.open(file) as image:
        if image.mode not in ('RGB', 'RGBA', 'P'):
            raise ValueError(
                f'a panoptic PNG must be an RGB image (id = R + 256 G + 65536 B), got mode '
                f'{image.mode}'
            )
        # A fourth byte, which PIL keeps anyway, makes integers of the pixels.
        pixels = np.asarray(image.convert('RGB').convert('RGBX'))
    return pixels.view('<i4')[..., 0] & 0xFFFFFF


def write_ids(file: File, segment_map: np.ndarray) -> None:
    """Writes ids ``(H, W)`` below 256**3 as a panoptic PNG."""
    Image.fromarray(id2rgb(segment_map)).save(file, format='PNG')


def id2rgb(segment_map: np.ndarray) -> np.ndarray:
    """Ids ``(H, W)`` to colors ``(H, W, 3)`` uint8: base 256, red lowest."""
    ids = np.asarray(segment_map)
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
