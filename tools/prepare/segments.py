"""Areas, boxes and encodings of the segments of an id map."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Extent(NamedTuple):
    """Area and box of a segment; ``bbox`` is ``[x, y, width, height]`` in whole pixels."""

    area: int
    bbox: list[int]


def measure(ids: 'np.ndarray') -> dict[int, Extent]:
    """Measure every id that occurs but 0, in ascending order. The ids must be small."""
    import numpy as np

    areas = np.bincount(ids.ravel())
    areas[0] = 0
    present = np.flatnonzero(areas)
    position = np.full(len(areas), len(present))
    position[present] = np.arange(len(present))
    index = position[ids]
    height, width = ids.shape
    # The last row collects the pixels of no segment.
    in_rows = np.zeros((len(present) + 1, height), bool)
    in_rows[index, np.arange(height)[:, None]] = True
    in_columns = np.zeros((len(present) + 1, width), bool)
    in_columns[index, np.arange(width)] = True
    extents = {}
    for number, value in enumerate(present):
        rows, columns = np.flatnonzero(in_rows[number]), np.flatnonzero(in_columns[number])
        x, y = int(columns[0]), int(rows[0])
        bbox = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
        extents[int(value)] = Extent(int(areas[value]), bbox)
    return extents


def to_colors(ids: 'np.ndarray') -> 'np.ndarray':
    """Write ids as the colors of COCO's panoptic PNG: id = R + 256 G + 65536 B."""
    import numpy as np

    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def from_colors(pixels: 'np.ndarray') -> 'np.ndarray':
    """Read the ids from the colors of a panoptic PNG."""
    import numpy as np

    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    return red + (green << 8) + (blue << 16)


def encode_masks(ids: 'np.ndarray', wanted: list[int]) -> list[dict[str, Any]]:
    """Encode the masks ``ids == value`` by COCO's run lengths."""
    import numpy as np
    from pycocotools import mask as coco_mask

    # The encoding runs down the columns: in this order each mask is compared and read straight on.
    by_columns = np.asfortranarray(ids)
    masks = []
    for value in wanted:
        encoded = coco_mask.encode((by_columns == value).view(np.uint8))
        masks.append({'counts': encoded['counts'].decode(), 'size': list(encoded['size'])})
    return masks
