"""Panoptic maps in mmdet's encoding, and the PNG files of COCO's panoptic format."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

# mmdet's encoding: class + 1000 * k for the k-th thing, the bare class for stuff.
INSTANCE_OFFSET = 1000

File = str | PathLike[str] | BinaryIO


class Segments(NamedTuple):
    """The segments of an image: ``segment_map (H, W)`` int32 and ``labels (N,)`` class indices.

    The map holds 0 for void and ``i + 1`` for the pixels of the segment with ``labels[i]``.
    """

    segment_map: np.ndarray
    labels: np.ndarray


class AnnotatedSegments(NamedTuple):
    """True segments: `Segments`, and for each whether it is a crowd (a group not told apart).

    ``areas (N,)`` are the pixel counts stated in the annotation file; None: count the map's pixels.
    """

    segment_map: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray | None = None


def decode_panoptic(sem_seg: np.ndarray, num_classes: int) -> Segments:
    """Read the segments of a map ``(H, W)`` in mmdet's encoding, where ``num_classes`` is void.

    Raises:
        ValueError: the map holds a class that the data set does not have.
    """
    values = np.asarray(sem_seg)
    present = np.flatnonzero(np.bincount(values.ravel()))
    present = present[present != num_classes]
    labels = present % INSTANCE_OFFSET
    if labels.max(initial=0) >= num_classes:
        raise ValueError(
            f'the panoptic map holds class {labels.max()}, the data set has {num_classes} classes: '
            'model and data set must have the same classes'
        )
    return Segments(renumbered(values, present), labels)


def read_segments(
    file: File, segments_info: Sequence[Mapping[str, Any]], stated_areas: bool = False
) -> AnnotatedSegments:
    """Read the segments of a panoptic PNG. Pixels whose id is not listed are void.

    Each entry of ``segments_info`` has ``id``, ``label`` (the class index), ``is_crowd`` and, for
    ``stated_areas``, ``area``.

    Raises:
        ValueError: the PNG has no colors, or a stated area is too small or no number.
    """
    ids, labels, is_crowd = (
        np.array([info[key] for info in segments_info], dtype)
        for key, dtype in (('id', np.int64), ('label', np.int64), ('is_crowd', bool))
    )
    segment_map = renumbered(read_ids(file), ids)
    if not stated_areas:
        return AnnotatedSegments(segment_map, labels, is_crowd)
    counted = np.bincount(segment_map.ravel(), minlength=1 + len(ids))[1:].tolist()
    for info, pixels in zip(segments_info, counted, strict=True):
        area = info.get('area')
        if not isinstance(area, int | float) or area != area // 1 or area < pixels:
            raise ValueError(
                f'the annotation states the area {area!r} of segment {info["id"]}, which has '
                f'{pixels} pixels here; stated_areas=True needs a number of at least these'
            )
    areas = np.array([info['area'] for info in segments_info], np.int64)
    return AnnotatedSegments(segment_map, labels, is_crowd, areas)


def renumbered(values: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Replace ``listed[i]`` by ``i + 1`` and all other values by 0; none is negative."""
    # A table is many times faster than sorting the pixels.
    size = 1 + max(values.max(initial=0), listed.max(initial=0))
    table = np.zeros(size, np.int32)
    table[listed] = np.arange(1, len(listed) + 1)
    return table[values]


def read_ids(file: File) -> np.ndarray:
    """Read the segment ids ``(H, W)`` int32 of a panoptic PNG: id = R + 256 G + 65536 B.

    Raises:
        ValueError: the PNG has no colors, so its values are no ids.
    """
    with Image.open(file) as image:
        if image.mode not in ('RGB', 'RGBA', 'P'):
            raise ValueError(f'a panoptic PNG must be an RGB image, got mode {image.mode}')
        # With a fourth byte, a pixel can be read as one 32-bit integer.
        pixels = np.asarray(image.convert('RGB').convert('RGBX'))
    return pixels.view('<i4')[..., 0] & 0xFFFFFF


def id2rgb(segment_map: np.ndarray) -> np.ndarray:
    """Convert ids ``(H, W)`` below 256**3 to the colors ``(H, W, 3)`` uint8 of a panoptic PNG."""
    colors = [segment_map >> shift & 255 for shift in (0, 8, 16)]
    return np.stack(colors, axis=-1).astype(np.uint8)
