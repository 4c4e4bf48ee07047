"""``gt_segments``: the ground truth of an image on its way through the transforms.

There are two kinds, `SegmentMap` (panoptic) and `InstanceShapes`. Their methods ``resize``,
``crop``, ``flip`` and ``pad`` return a moved copy. No mask is drawn on the way: however many steps
there are, each mask is drawn once, at the final size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmseg_m2f.evaluation.panoptic_map import renumbered
from mmseg_m2f.evaluation.rle import Rle, import_coco_mask

NO_SEGMENT = -1
Size = tuple[int, int]


class PixelGrid(NamedTuple):
    """The row and the column of the source that each pixel shows; -1 in padding.

    Every transform here moves whole rows and columns, so one number for each is enough.
    """

    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, size: Size) -> 'PixelGrid':
        """Return the grid in which each pixel shows itself."""
        return cls(np.arange(size[0]), np.arange(size[1]))

    @property
    def size(self) -> Size:
        return len(self.rows), len(self.columns)

    def resize(self, size: Size) -> 'PixelGrid':
        # Pillow itself resizes the indices, so that ties are broken as in the official code.
        height, width = size
        every_row, every_column = (np.arange(length, dtype=np.int32) for length in self.size)
        rows = _nearest(every_row[:, None], (1, height))[:, 0]
        columns = _nearest(every_column[None], (width, 1))[0]
        return PixelGrid(self.rows[rows], self.columns[columns])

    def crop(self, x: int, y: int, width: int, height: int) -> 'PixelGrid':
        return PixelGrid(self.rows[y : y + height], self.columns[x : x + width])

    def flip(self) -> 'PixelGrid':
        return PixelGrid(self.rows, self.columns[::-1])

    def pad(self, size: Size) -> 'PixelGrid':
        rows, columns = (
            np.pad(side, (0, new - len(side)), constant_values=-1)
            for side, new in zip(self, size, strict=True)
        )
        return PixelGrid(rows, columns)

    def take(self, source: np.ndarray, fill: int) -> np.ndarray:
        """Return the pixels of ``source`` in this grid, and ``fill`` in padding."""
        shown = source.take(self.rows, axis=0).take(self.columns, axis=1)
        shown[self.rows < 0] = fill
        shown[:, self.columns < 0] = fill
        return shown


def _nearest(pixels: np.ndarray, size: Size) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST))


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """The part common to `SegmentMap` and `InstanceShapes`.

    Args:
        labels: (N,) class indices.
        grid: the pixels of the file that the moved image shows.
        is_flipped: whether left and right are swapped.
    """

    labels: np.ndarray
    grid: PixelGrid
    is_flipped: bool = False

    @property
    def size(self) -> Size:
        return self.grid.size

    def resize(self, size: Size) -> 'Segments':
        return self._moved(self.grid.resize(size), scale=np.divide(size, self.size)[::-1])

    def crop(self, x: int, y: int, width: int, height: int) -> 'Segments':
        return self._moved(self.grid.crop(x, y, width, height), shift=(-x, -y))

    def flip(self) -> 'Segments':
        moved = self._moved(self.grid.flip(), scale=(-1, 1), shift=(self.size[1], 0))
        return replace(moved, is_flipped=not self.is_flipped)

    def pad(self, size: Size) -> 'Segments':
        return self._moved(self.grid.pad(size))

    def _moved(
        self, grid: PixelGrid, scale: npt.ArrayLike = (1, 1), shift: npt.ArrayLike = (0, 0)
    ) -> 'Segments':
        """Return a copy with this grid; a point (x, y) lies at ``(x, y) * scale + shift`` in it."""
        return replace(self, grid=grid)


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentMap(Segments):
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
        index_map = renumbered(self.grid.take(self.ids, fill=0), self.segment_ids) - 1
        # 0, which fills the padding, may be the id of a segment.
        index_map[self.grid.rows < 0] = NO_SEGMENT
        index_map[:, self.grid.columns < 0] = NO_SEGMENT
        return index_map


class Patch(NamedTuple):
    """The mask of one instance inside a rectangle; outside it is False.

    Args:
        x, y: left column and upper row of the rectangle in the image.
        pixels: (height, width) bool of the rectangle.
    """

    x: int
    y: int
    pixels: np.ndarray

    def box(self) -> tuple[int, int, int, int]:
        """Return ``x1 y1 x2 y2`` around the mask, right and lower edge exclusive; 0 if empty."""
        columns, rows = (np.flatnonzero(self.pixels.any(axis=axis)) for axis in (0, 1))
        if not len(rows):
            return 0, 0, 0, 0
        x1, x2 = int(columns[0]) + self.x, int(columns[-1]) + self.x + 1
        return x1, int(rows[0]) + self.y, x2, int(rows[-1]) + self.y + 1


NO_PATCH = Patch(0, 0, np.zeros((0, 0), bool))


def paste(patches: Sequence[Patch], size: Size) -> np.ndarray:
    """Return the masks (N, height, width) bool of all patches."""
    masks = np.zeros((len(patches), *size), bool)
    for mask, (x, y, pixels) in zip(masks, patches, strict=True):
        mask[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return masks


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceShapes(Segments):
    """Instances, which may overlap: polygons as coordinates, run-length encodings as pixels.

    A polygon is drawn at the final size, as the official code does. Drawn at the file's size it
    would get jagged when the image is enlarged.

    Args:
        polygons: instance index to its polygons, each (V, 2) x and y in pixels.
        bitmaps: instance index to its compressed run-length encoding, at the file's size.
    """

    polygons: dict[int, list[np.ndarray]]
    bitmaps: dict[int, Rle]

    def _moved(
        self, grid: PixelGrid, scale: npt.ArrayLike = (1, 1), shift: npt.ArrayLike = (0, 0)
    ) -> 'Segments':
        polygons = {
            index: [vertices * np.asarray(scale) + shift for vertices in outline]
            for index, outline in self.polygons.items()
        }
        return replace(self, grid=grid, polygons=polygons)

    def masks(self) -> np.ndarray:
        """Return the masks (N, height, width) bool."""
        return paste(self.patches(), self.size)

    def patches(self) -> list[Patch]:
        """Return a patch per instance. Most instances fill only a small part of the image."""
        patches = [NO_PATCH] * len(self.labels)
        for index, polygons in self.polygons.items():
            patches[index] = self._draw(polygons)
        for index, encoded in self.bitmaps.items():
            patches[index] = self._decode(encoded)
        return patches

    def _draw(self, polygons: list[np.ndarray]) -> Patch:
        patch = draw_polygons(polygons, self.size)
        height, width = patch.pixels.shape
        # A polygon that a crop cut off goes on beyond the image: keep it out of the padding.
        patch.pixels[self.grid.rows[patch.y : patch.y + height] < 0] = False
        patch.pixels[:, self.grid.columns[patch.x : patch.x + width] < 0] = False
        return patch

    def _decode(self, encoded: Rle) -> Patch:
        coco_mask = import_coco_mask()
        # Only the box of the instance is read: most of a large file lies outside of it.
        x, y, width, height = coco_mask.toBbox(encoded).astype(int).tolist()
        rows, columns = (
            np.flatnonzero((side >= start) & (side < start + length))
            for side, start, length in zip(self.grid, (y, x), (height, width), strict=True)
        )
        if not len(rows) or not len(columns):
            return NO_PATCH
        box = coco_mask.decode(encoded)[y : y + height, x : x + width].view(bool)
        # The rows and columns of the box stay side by side: no transform changes their order.
        pixels = box.take(self.grid.rows[rows] - y, axis=0)
        pixels = pixels.take(self.grid.columns[columns] - x, axis=1)
        return Patch(int(columns[0]), int(rows[0]), pixels)


def draw_polygons(polygons: list[np.ndarray], size: Size) -> Patch:
    """Fill polygons by pycocotools' rule, as far as they lie in an image of this size."""
    vertices = np.concatenate(polygons)
    x1, y1 = np.maximum(np.floor(vertices.min(axis=0)), 0).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(vertices.max(axis=0)) + 1, size[::-1]).astype(int).tolist()
    if x1 >= x2 or y1 >= y2:
        return NO_PATCH
    coco_mask = import_coco_mask()
    # The vertices are not shifted to the patch: pycocotools rounds to fifths of a pixel, and
    # coordinates in tenths, which are common, lie exactly between two of them. A rounding error
    # from the shift would send them to the other side.
    flat = [polygon.ravel().tolist() for polygon in polygons]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, y2, x2)))
    return Patch(x1, y1, drawn[y1:, x1:].view(bool))
