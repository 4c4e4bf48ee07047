"""Masks as COCO's run lengths. pycocotools comes with mmdet and is imported when it is used."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Rle = dict[str, Any]


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """Encode ``masks (N, H, W)`` bool as ``{'size': [H, W], 'counts': text}``, ready for JSON.

    This is fastest if the pixels of a column are side by side in memory: runs go down the columns.
    """
    codes = import_coco_mask().encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
    return [{'size': list(code['size']), 'counts': code['counts'].decode()} for code in codes]


def decode_masks(codes: Sequence[Rle], size: Sequence[int]) -> np.ndarray:
    """Decode the result of `encode_masks` to ``(N, H, W)`` bool; ``size (H, W)`` serves N = 0."""
    if not codes:
        return np.zeros((0, *size[:2]), bool)
    return import_coco_mask().decode(list(codes)).transpose(2, 0, 1).astype(bool)


def import_coco_mask() -> Any:
    """Import ``pycocotools.mask``.

    Raises:
        ImportError: pycocotools is not installed; the message has the command.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError(
            f'masks are stored as run lengths by pycocotools, which cannot be imported ({error}): '
            'pip install pycocotools'
        ) from error
    return mask
