"""``gt_segments``: the ground truth of a picture on its way through the transforms.

Both kinds have ``labels (N,)``, ``size`` (height, width), ``is_flipped``, and the methods
``resize``, ``crop``, ``flip`` and ``pad``, each of which returns a moved copy. Nothing is drawn
until the packing asks for it: one drawing at the final size, however many steps led there.
"""

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
        shown = source[self.rows][:, self.columns]
        shown[self.rows < 0] = fill
        shown[:, self.columns < 0] = fill
        return shown


def _nearest(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST))


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentMap:
    """Panoptic segments: they do not overlap.

    Resizing takes the nearest pixel by PIL's rule, as the official code does with the colours of
    a panoptic PNG.

    Args:
        ids: (height, width) of the file: in each pixel the id of its segment, or another number.
        segment_ids: (N,) the ids that are segments.
        labels: (N,) class indices.
        is_thing: (N,) bool.
        grid: the pixels of ``ids`` that the picture shows by now.
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
        grid: the pixels of the file that the picture shows by now.
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
        masks = np.zeros((len(self.labels), *self.size), bool)
        for index, outlines in self.outlines.items():
            _draw(masks[index], [self.vertices[start:stop] for start, stop in outlines])
        # A polygon goes on beyond the edge where a crop cut it off: not into the padding.
        masks[:, self.grid.rows < 0] = False
        masks[:, :, self.grid.columns < 0] = False
        for index, encoded in self.bitmaps.items():
            self._copy(masks[index], encoded)
        return masks

    def _copy(self, mask: np.ndarray, encoded: Rle) -> None:
        coco_mask = import_coco_mask()
        # Most of a large file is outside of the instance's box.
        x, y, width, height = coco_mask.toBbox(encoded).astype(int).tolist()
        rows, columns = self.grid
        in_box = (rows >= y) & (rows < y + height), (columns >= x) & (columns < x + width)
        if not all(side.any() for side in in_box):
            return
        bitmap = coco_mask.decode(encoded)
        mask[np.ix_(*in_box)] = bitmap[np.ix_(rows[in_box[0]], columns[in_box[1]])]


def _draw(mask: np.ndarray, polygons: list[np.ndarray]) -> None:
    """Fills the polygons by pycocotools' rule, in the part of the mask where they lie."""
    vertices = np.concatenate(polygons)
    x1, y1 = np.maximum(np.floor(vertices.min(axis=0)), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(vertices.max(axis=0)) + 1, mask.shape[::-1]).astype(int)
    if x1 >= x2 or y1 >= y2:
        return
    coco_mask = import_coco_mask()
    # From the origin on: coordinates of tenths, which are common, lie on the border between two
    # of pycocotools' fifths, and moved by a rounding error they would fall to the other side.
    flat = [polygon.ravel().tolist() for polygon in polygons]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, y2, x2)))
    mask[y1:y2, x1:x2] = drawn[y1:, x1:]
