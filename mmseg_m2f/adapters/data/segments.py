"""``gt_segments``: the ground truth of a image on its way through the transforms.

Both kinds have ``labels (N,)``, ``size`` (height, width), ``is_flipped``, and the methods
``resize``, ``crop``, ``flip`` and ``pad``, each of which returns a moved copy. Nothing is drawn
until the packing asks for it: one drawing at the final size, however many steps led there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmseg_m2f.evaluation.rle import Rle, import_coco_mask

NO_SEGMENT = -1


class PixelGrid(NamedTuple):
    """Which row and column of a source each pixel shows; -1 where it shows none."""

    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, size: tuple[int, int]) -> 'PixelGrid':
        """Each pixel shows itself."""
        return cls(np.arange(size[0]), np.arange(size[1]))

    @property
    def size(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def resize(self, size: tuple[int, int]) -> 'PixelGrid':
        # PIL itself says which pixel its nearest filter takes, so that ties are broken as there.
        height, width = size
        every_row, every_column = (np.arange(length, dtype=np.int32) for length in self.size)
        rows = _nearest(every_row[:, None], (1, height))[:, 0]
        columns = _nearest(every_column[None], (width, 1))[0]
        return PixelGrid(self.rows[rows], self.columns[columns])

    def crop(self, x: int, y: int, width: int, height: int) -> 'PixelGrid':
        return PixelGrid(self.rows[y : y + height], self.columns[x : x + width])

    def flip(self) -> 'PixelGrid':
        return PixelGrid(self.rows, self.columns[::-1])

    def pad(self, size: tuple[int, int]) -> 'PixelGrid':
        missing = [(0, new - old) for new, old in zip(size, self.size, strict=True)]
        rows, columns = (
            np.pad(side, width, constant_values=-1)
            for side, width in zip(self, missing, strict=True)
        )
        return PixelGrid(rows, columns)

    def take(self, source: np.ndarray, fill: int) -> np.ndarray:
        """The pixels of ``source`` that are shown, ``fill`` where none is."""
        shown = gather(source, self.rows, self.columns)
        shown[self.rows < 0] = fill
        shown[:, self.columns < 0] = fill
        return shown


def gather(source: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """``source[rows][:, columns]``.

    Of a row all pixels are copied at once, of a column one by one: columns come first where rows
    are to become more.
    """
    if len(rows) > len(source):
        return source.take(columns, axis=1).take(rows, axis=0)
    return source.take(rows, axis=0).take(columns, axis=1)


def _nearest(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST))


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentMap:
    """Panoptic segments: they do not overlap.

    Resizing takes the nearest pixel by PIL's rule, as the official code does with the colors of
    a panoptic PNG.

    Args:
        ids: (height, width) of the file: in each pixel the id of its segment, or another number.
        segment_ids: (N,) the ids that are segments.
        labels: (N,) class indices.
        is_thing: (N,) bool.
        grid: the pixels of ``ids`` that the image shows by now.
        is_flipped: whether it shows them the other way round.
    """

    ids: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray
    is_thing: np.ndarray
    grid: PixelGrid
    is_flipped: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.grid.size

    def resize(self, size: tuple[int, int]) -> 'SegmentMap':
        return replace(self, grid=self.grid.resize(size))

    def crop(self, x: int, y: int, width: int, height: int) -> 'SegmentMap':
        return replace(self, grid=self.grid.crop(x, y, width, height))

    def flip(self) -> 'SegmentMap':
        return replace(self, grid=self.grid.flip(), is_flipped=not self.is_flipped)

    def pad(self, size: tuple[int, int]) -> 'SegmentMap':
        return replace(self, grid=self.grid.pad(size))

    def index_map(self) -> np.ndarray:
        """(height, width) int32: the index of each pixel's segment, -1 for none."""
        index_map = self._indices(self.grid.take(self.ids, fill=0))
        index_map[self.grid.rows < 0] = NO_SEGMENT
        index_map[:, self.grid.columns < 0] = NO_SEGMENT
        return index_map

    def _indices(self, ids: np.ndarray) -> np.ndarray:
        if not len(self.segment_ids) or not ids.size:
            return np.full(ids.shape, NO_SEGMENT, np.int32)
        # Looked up once for each run of equal pixels: there are far fewer of them than pixels.
        pixels = ids.ravel()
        starts = np.flatnonzero(np.concatenate([[True], pixels[1:] != pixels[:-1]]))
        order = np.argsort(self.segment_ids)
        in_order = self.segment_ids[order]
        values = pixels[starts]
        position = np.minimum(np.searchsorted(in_order, values), len(order) - 1)
        index = np.where(in_order[position] == values, order[position], NO_SEGMENT)
        lengths = np.diff(starts, append=pixels.size)
        return np.repeat(index.astype(np.int32), lengths).reshape(ids.shape)


class Patch(NamedTuple):
    """One instance in the rectangle where it lies.

    Args:
        x, y: the rectangle's left and upper edge in pixels of the image.
        pixels: (height, width) bool of the rectangle; everything outside is False.
    """

    x: int
    y: int
    pixels: np.ndarray

    def box(self) -> tuple[int, int, int, int]:
        """``x1 y1 x2 y2`` of the pixels that are True, right and bottom exclusive; 0 if none is."""
        columns, rows = (np.flatnonzero(self.pixels.any(axis=axis)) for axis in (0, 1))
        if not len(rows):
            return 0, 0, 0, 0
        x1, x2 = int(columns[0]) + self.x, int(columns[-1]) + self.x + 1
        return x1, int(rows[0]) + self.y, x2, int(rows[-1]) + self.y + 1


NO_PATCH = Patch(0, 0, np.zeros((0, 0), bool))


def paste(patches: Sequence[Patch], size: tuple[int, int]) -> np.ndarray:
    """(N, height, width) bool."""
    masks = np.zeros((len(patches), *size), bool)
    for mask, (x, y, pixels) in zip(masks, patches, strict=True):
        mask[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return masks


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceShapes:
    """Instances, which may overlap: polygons stay coordinates, run-length encodings stay pixels.

    A polygon is drawn at the final size, as the official code does: at native size it would become
    jagged when enlarged. What lies outside is cut off in the drawing.

    Args:
        labels: (N,) class indices.
        vertices: (V, 2) of all polygons, x and y in pixels.
        outlines: instance index to its polygons, each ``(start, stop)`` in ``vertices``.
        bitmaps: instance index to its compressed run-length encoding, at the file's size.
        grid: the pixels of the file that the image shows by now.
        is_flipped: whether it shows them the other way round.
    """

    labels: np.ndarray
    vertices: np.ndarray
    outlines: dict[int, list[tuple[int, int]]]
    bitmaps: dict[int, Rle]
    grid: PixelGrid
    is_flipped: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.grid.size

    def resize(self, size: tuple[int, int]) -> 'InstanceShapes':
        factor = np.divide(size, self.size)[::-1]
        return replace(self, vertices=self.vertices * factor, grid=self.grid.resize(size))

    def crop(self, x: int, y: int, width: int, height: int) -> 'InstanceShapes':
        grid = self.grid.crop(x, y, width, height)
        return replace(self, vertices=self.vertices - (x, y), grid=grid)

    def flip(self) -> 'InstanceShapes':
        mirrored = self.vertices * (-1, 1) + (self.size[1], 0)
        return replace(
            self, vertices=mirrored, grid=self.grid.flip(), is_flipped=not self.is_flipped
        )

    def pad(self, size: tuple[int, int]) -> 'InstanceShapes':
        return replace(self, grid=self.grid.pad(size))

    def masks(self) -> np.ndarray:
        """(N, height, width) bool."""
        return paste(self.patches(), self.size)

    def patches(self) -> list[Patch]:
        """Each instance; most fill but a small part of the image."""
        patches = [NO_PATCH] * len(self.labels)
        for index, outlines in self.outlines.items():
            polygons = [self.vertices[start:stop] for start, stop in outlines]
            patches[index] = self._drawn(polygons)
        for index, encoded in self.bitmaps.items():
            patches[index] = self._copied(encoded)
        return patches

    def _drawn(self, polygons: list[np.ndarray]) -> Patch:
        patch = _draw(polygons, self.size)
        height, width = patch.pixels.shape
        # A polygon goes on beyond the edge where a crop cut it off: not into the padding.
        patch.pixels[self.grid.rows[patch.y : patch.y + height] < 0] = False
        patch.pixels[:, self.grid.columns[patch.x : patch.x + width] < 0] = False
        return patch

    def _copied(self, encoded: Rle) -> Patch:
        coco_mask = import_coco_mask()
        # Most of a large file is outside of the instance's box.
        x, y, width, height = coco_mask.toBbox(encoded).astype(int).tolist()
        rows, columns = (
            np.flatnonzero((side >= start) & (side < start + length))
            for side, start, length in zip(self.grid, (y, x), (height, width), strict=True)
        )
        if not len(rows) or not len(columns):
            return NO_PATCH
        box = coco_mask.decode(encoded)[y : y + height, x : x + width].view(bool)
        # No transform changes the order of rows or columns: those of the box lie together.
        pixels = gather(box, self.grid.rows[rows] - y, self.grid.columns[columns] - x)
        return Patch(int(columns[0]), int(rows[0]), pixels)


def _draw(polygons: list[np.ndarray], size: tuple[int, int]) -> Patch:
    """The polygons filled by pycocotools' rule, as far as they lie in a image of this size."""
    vertices = np.concatenate(polygons)
    x1, y1 = np.maximum(np.floor(vertices.min(axis=0)), 0).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(vertices.max(axis=0)) + 1, size[::-1]).astype(int).tolist()
    if x1 >= x2 or y1 >= y2:
        return NO_PATCH
    coco_mask = import_coco_mask()
    # From the origin on: coordinates of tenths, which are common, lie on the border between two
    # of pycocotools' fifths, and moved by a rounding error they would fall to the other side.
    flat = [polygon.ravel().tolist() for polygon in polygons]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, y2, x2)))
    return Patch(x1, y1, drawn[y1:, x1:].view(bool))
