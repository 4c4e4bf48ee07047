"""``gt_segments``: the ground truth of an image on its way through the transforms.

There are two kinds, `SegmentMap` (panoptic) and `InstanceShapes`. Their methods ``resize``,
``crop``, ``flip`` and ``pad`` return a moved copy. However many steps there are, each mask is drawn
once, at the final size.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmseg_m2f.evaluation.panoptic_map import renumbered
from mmseg_m2f.evaluation.rle import Rle, import_coco_mask

NO_SEGMENT = -1
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class MovedSegments:
    """The part common to `SegmentMap` and `InstanceShapes`.

    Every transform here moves whole rows and columns, so one index for each is enough.

    Args:
        labels: (N,) class indices.
        rows, columns: the row and the column of the file that each pixel shows; -1 in padding.
        is_flipped: whether left and right are swapped.
        polygons: index of an instance to its polygons, each (V, 2) x and y in pixels.
    """

    labels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    is_flipped: bool = False
    polygons: dict[int, list[np.ndarray]] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        return len(self.rows), len(self.columns)

    def resize(self, size: Size) -> 'MovedSegments':
        rows, columns = self.rows[_nearest(self.size[0], size[0])], _nearest(self.size[1], size[1])
        return self._moved(rows, self.columns[columns], np.divide(size, self.size)[::-1])

    def crop(self, x: int, y: int, width: int, height: int) -> 'MovedSegments':
        rows, columns = self.rows[y : y + height], self.columns[x : x + width]
        return self._moved(rows, columns, shift=(-x, -y))

    def flip(self) -> 'MovedSegments':
        shift = (self.size[1], 0)
        moved = self._moved(self.rows, self.columns[::-1], scale=(-1, 1), shift=shift)
        return replace(moved, is_flipped=not self.is_flipped)

    def pad(self, size: Size) -> 'MovedSegments':
        new_rows, new_columns = np.subtract(size, self.size)
        return self._moved(
            np.pad(self.rows, (0, new_rows), constant_values=-1),
            np.pad(self.columns, (0, new_columns), constant_values=-1),
        )

    def _moved(
        self,
        rows: np.ndarray,
        columns: np.ndarray,
        scale: npt.ArrayLike = (1, 1),
        shift: npt.ArrayLike = (0, 0),
    ) -> 'MovedSegments':
        """Return a copy in which a point (x, y) lies at ``(x, y) * scale + shift``."""
        polygons = {
            index: [vertices * np.asarray(scale) + shift for vertices in outline]
            for index, outline in self.polygons.items()
        }
        return replace(self, rows=rows, columns=columns, polygons=polygons)


def _nearest(old: int, new: int) -> np.ndarray:
    # Pillow itself resizes the indices, so that ties are broken as in the official code.
    indices = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return np.asarray(indices.resize((new, 1), Image.Resampling.NEAREST))[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentMap(MovedSegments):
    """Panoptic segments, which do not overlap.

    Resizing takes the nearest pixel by Pillow's rule, as the official code does with the colors of
    a panoptic PNG.

    Args:
        ids: (height, width) of the file: the segment id of each pixel, or another number.
        segment_ids: (N,) the ids that are segments.
        is_thing: (N,) bool.
    """

    ids: np.ndarray
    segment_ids: np.ndarray
    is_thing: np.ndarray

    def index_map(self) -> np.ndarray:
        """Return (height, width) int32: the index of each pixel's segment, -1 for none."""
        ids = self.ids.take(self.rows, axis=0).take(self.columns, axis=1)
        index_map = renumbered(ids, self.segment_ids) - 1
        index_map[self.rows < 0] = NO_SEGMENT
        index_map[:, self.columns < 0] = NO_SEGMENT
        return index_map


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceShapes(MovedSegments):
    """Instances, which may overlap: polygons as coordinates, run-length encodings as pixels.

    A polygon is drawn at the final size, as the official code does. Drawn at the file's size it
    would get jagged when the image is enlarged.

    Args:
        bitmaps: instance index to its compressed run-length encoding, at the file's size.
    """

    bitmaps: dict[int, Rle]

    def masks(self) -> np.ndarray:
        """Return the masks (N, height, width) bool."""
        masks = np.zeros((len(self.labels), *self.size), bool)
        for index, polygons in self.polygons.items():
            _draw_polygons(polygons, masks[index])
        for index, encoded in self.bitmaps.items():
            self._draw_bitmap(encoded, masks[index])
        # A polygon that a crop cut off goes on beyond the image.
        masks[:, self.rows < 0] = False
        masks[:, :, self.columns < 0] = False
        return masks

    def _draw_bitmap(self, encoded: Rle, mask: np.ndarray) -> None:
        coco_mask = import_coco_mask()
        # Only the box of the instance is read: most of a large file lies outside of it.
        x, y, width, height = coco_mask.toBbox(encoded).astype(int).tolist()
        rows = np.flatnonzero((self.rows >= y) & (self.rows < y + height))
        columns = np.flatnonzero((self.columns >= x) & (self.columns < x + width))
        if len(rows) and len(columns):
            box = coco_mask.decode(encoded)[y : y + height, x : x + width]
            pixels = box[np.ix_(self.rows[rows] - y, self.columns[columns] - x)]
            mask[np.ix_(rows, columns)] = pixels


def _draw_polygons(polygons: list[np.ndarray], mask: np.ndarray) -> None:
    """Fill polygons by pycocotools' rule, as far as they lie in the mask."""
    vertices = np.concatenate(polygons)
    x1, y1 = np.maximum(np.floor(vertices.min(axis=0)), 0).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(vertices.max(axis=0)) + 1, mask.shape[::-1]).astype(int).tolist()
    if x1 < x2 and y1 < y2:
        coco_mask = import_coco_mask()
        # The vertices are not shifted to the box: pycocotools rounds to fifths of a pixel, and
        # coordinates in tenths, which are common, lie exactly between two of them. A rounding
        # error from the shift would send them to the other side.
        flat = [polygon.ravel().tolist() for polygon in polygons]
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, y2, x2)))
        mask[y1:y2, x1:x2] = drawn[y1:, x1:]
