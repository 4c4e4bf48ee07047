"""Masks as COCO's run lengths. pycocotools is imported when it is used: it comes with mmdet."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Rle = dict[str, Any]


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """``masks (N, H, W)`` bool as ``{'size': [H, W], 'counts': text}``, ready for JSON.

    Quickest where a column of a mask lies together in memory: the runs go down the columns.
    """
    coco_mask = import_coco_mask()
    columns = np.asfortranarray(masks.transpose(1, 2, 0), np.uint8)
    return [
        {'size': [int(side) for side in rle['size']], 'counts': rle['counts'].decode('ascii')}
        for rle in coco_mask.encode(columns)
    ]


def decode_masks(codes: Sequence[Rle], size: Sequence[int]) -> np.ndarray:
    """The masks ``(N, H, W)`` bool of ``encode_masks``; ``size (H, W)`` is for none at all."""
    if not codes:
        return np.zeros((0, *size[:2]), bool)
    return import_coco_mask().decode(list(codes)).transpose(2, 0, 1).astype(bool)


def import_coco_mask() -> Any:
    """``pycocotools.mask``.

    Raises:
        ImportError: it is not installed, with the command.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError(
            f'instances are stored as pycocotools does, which cannot be imported ({error}): '
            'pip install pycocotools'
        ) from error
    return mask
