"""Write one JSON file for each split from one record for each image. Interrupted work goes on.

The records are kept beside the JSON file, in ``NAME.json.part``, until that file is whole.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from command_line import UsageError
from pycocotools import mask as coco_mask
from scipy import ndimage

from prepare.files import is_whole_png, read_json, read_map, replacing, write_png
from prepare.progress import convert_all, say, show_progress

if TYPE_CHECKING:
    from mmseg_m2f.metadata import DatasetMetadata

MADE_BY = 'mmseg_m2f prepare_dataset'
FORMAT = 1
Json = dict[str, Any]


class Image(NamedTuple):
    """An image: its id ``name``, the ``file_name`` for the JSON, the PNG to write (``target``)."""

    name: str
    file_name: str
    sources: tuple[Path, ...]
    target: Path | None = None


class Record(NamedTuple):
    """The entries of an image in the JSON file, annotations without ids.

    ``written`` tells whether the PNG had to be written.
    """

    image: Json
    annotations: list[Json]
    written: bool = False


class Outcome(NamedTuple):
    """The result of a split; ``kept`` images were finished before."""

    images: int
    segments: int
    kept: int
    path: Path


class Task(NamedTuple):
    """How images become ``'panoptic'`` or ``'instance'`` annotations.

    Ids count from 1 in COCO's instance format; the id of a panoptic image is its name.
    """

    name: str
    categories: list[Json]
    convert: Callable[[Image], Record]


class Split(NamedTuple):
    """A split to make from the data set in ``root``."""

    name: str
    path: Path
    root: Path
    images: Sequence[Image]
    task: Task

    @property
    def part(self) -> Path:
        """Return the file of the records while the JSON file is not whole."""
        return self.path.with_name(f'{self.path.name}.part')


def panoptic_categories(metadata: 'DatasetMetadata') -> list[Json]:
    """Return the categories in COCO's panoptic format, in the order of the classes."""
    return [
        {**category, 'color': list(color), 'isthing': int(index in metadata.thing_ids)}
        for index, (category, color) in enumerate(
            zip(instance_categories(metadata), metadata.palette, strict=True)
        )
    ]


def instance_categories(metadata: 'DatasetMetadata') -> list[Json]:
    """Return the categories in COCO's instance format, in the order of the classes."""
    columns = zip(metadata.category_ids, metadata.classes, strict=True)
    return [{'id': category_id, 'name': name} for category_id, name in columns]


def image_entry(image: Image, size: Sequence[int]) -> Json:
    """Return the entry of an image of ``(height, width)`` without its id."""
    return {'file_name': image.file_name, 'height': size[0], 'width': size[1]}


def segment_entry(extent: Json, category_id: int, is_crowd: bool = False, **more: Any) -> Json:
    """Return the entry of a segment, with ``id`` (panoptic) or ``segmentation`` (instance)."""
    return {**extent, 'category_id': category_id, 'iscrowd': int(is_crowd), **more}


def measure(ids: np.ndarray) -> dict[int, Json]:
    """Return area and box ``[x, y, width, height]`` of each id but 0, in ascending order."""
    areas = np.bincount(ids.ravel())
    extents = {}
    for value, box in enumerate(ndimage.find_objects(ids), 1):
        if box is not None:
            y, x = box
            bbox = [x.start, y.start, x.stop - x.start, y.stop - y.start]
            extents[value] = {'area': int(areas[value]), 'bbox': bbox}
    return extents


def encode_masks(ids: np.ndarray, wanted: Iterable[int]) -> list[Json]:
    """Encode the masks ``ids == value`` by COCO's run lengths."""
    # The encoding runs down the columns: in this order each mask is compared and read straight on.
    by_columns = np.asfortranarray(ids)
    encoded = [coco_mask.encode((by_columns == value).view(np.uint8)) for value in wanted]
    return [{'counts': code['counts'].decode(), 'size': list(code['size'])} for code in encoded]


def from_colors(pixels: np.ndarray) -> np.ndarray:
    """Read the ids of a panoptic PNG of COCO: R + 256 G + 65536 B."""
    return pixels.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)


def keep_or_write_ids(path: Path | None, ids: np.ndarray) -> bool:
    """Write a panoptic PNG unless the file holds these ids; return whether it was written."""
    assert path is not None
    colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
    if is_whole_png(path) and np.array_equal(read_map(path), colors):
        return False
    write_png(path, colors)
    return True


def make(plan: Iterable[Split], workers: int) -> Iterator[Outcome]:
    """Make what is missing of each split."""
    for split in plan:
        yield _make_split(split, workers)


def _make_split(split: Split, workers: int) -> Outcome:
    def convert(images: Sequence[Image]) -> Iterator[Record]:
        records = convert_all(split.task.convert, images, workers)
        return show_progress(split.name, records, len(images))

    found = _finished(split)
    if found is not None:
        lost = [image for image in split.images if not _has_png(image)]
        if not lost or found.get('info', {}).get('description') == MADE_BY:
            split.part.unlink(missing_ok=True)
            for _ in convert(lost):
                pass
            return _outcome(split, found['annotations'], len(split.images) - len(lost))
        say(f'{split.name}: {split.path} was made by another tool and lacks PNG files: all anew')
    elif split.path.exists():
        say(f'{split.name}: {split.path} is not what the configs read: made anew')
    with _journal(split) as (records, add):
        todo = [image for image in split.images if not (image.name in records and _has_png(image))]
        kept = len(split.images) - len(todo)
        if kept:
            say(f'{split.name}: {kept} of {len(split.images)} images are done already')
        for image, record in zip(todo, convert(todo), strict=True):
            add(image.name, record)
            kept += image.target is not None and not record.written
    annotations, images = _entries(split, [records[image.name] for image in split.images])
    write_dataset(split.path, annotations, split.task.categories, images)
    split.part.unlink()
    return _outcome(split, annotations, kept)


@contextlib.contextmanager
def _journal(split: Split) -> Iterator[tuple[dict[str, list[Any]], Callable[[str, Record], None]]]:
    """Open the file of finished records: a heading, then a record on each line.

    Give the entries by name, and a function that adds one and writes it at once: an interrupt does
    not lose it.
    """
    first = json.dumps({'format': FORMAT, 'made_by': MADE_BY, 'root': os.path.abspath(split.root)})
    # The last line is empty, or the half line of an interrupted run.
    found, *lines = split.part.read_text().split('\n') if split.part.is_file() else ['']
    lines = lines[:-1] if found == first else []
    with replacing(split.part) as file:
        file.writelines(f'{line}\n'.encode() for line in [first, *lines])
    records = {name: entries for name, *entries in map(json.loads, lines)}
    with split.part.open('a') as journal:

        def add(name: str, record: Record) -> None:
            records[name] = [record.image, record.annotations]
            journal.write(json.dumps([name, *records[name]]) + '\n')
            journal.flush()

        yield records, add


def _finished(split: Split) -> Json | None:
    """Return the existing JSON file if it is of these images and categories."""
    # Other tools name the photos differently in the panoptic format, but agree on the ids.
    key, names = 'id', [image.name for image in split.images]
    if split.task.name == 'instance':
        key, names = 'file_name', [image.file_name for image in split.images]
    try:
        found = read_json(split.path)
        images = sorted(image[key] for image in found['images'])
        categories = [category['id'] for category in found['categories']]
    except (FileNotFoundError, UsageError, KeyError, TypeError):
        return None
    same = [category['id'] for category in split.task.categories]
    return found if (images, categories) == (sorted(names), same) else None


def _has_png(image: Image) -> bool:
    return image.target is None or is_whole_png(image.target)


def _outcome(split: Split, annotations: Sequence[Json], kept: int) -> Outcome:
    segments = len(annotations)
    if split.task.name == 'panoptic':
        segments = sum(len(annotation['segments_info']) for annotation in annotations)
    return Outcome(len(split.images), segments, kept, split.path)


def _entries(split: Split, records: Sequence[Sequence[Any]]) -> tuple[list[Json], list[Json]]:
    """Return the annotations and the images of the JSON file, with their ids."""
    annotations: list[Json] = []
    images: list[Json] = []
    for number, (image, (entry, segments)) in enumerate(zip(split.images, records, strict=True), 1):
        if image.target is not None:
            images.append({**entry, 'id': image.name})
            named = {'file_name': image.target.name, 'image_id': image.name}
            annotations.append({**named, 'segments_info': segments})
        else:
            # Numbers, not names: several readers of COCO's format turn the ids into integers.
            images.append({**entry, 'id': number})
            for segment in segments:
                annotations.append({**segment, 'id': len(annotations) + 1, 'image_id': number})
    return annotations, images


def write_dataset(
    path: Path, annotations: Iterable[Json], categories: Iterable[Json], images: Iterable[Json]
) -> bool:
    """Write a JSON file unless it has this content; return whether it was written.

    An entry stands on each line, with sorted keys, and nothing depends on the time.
    """
    parts = []
    for key, entries in {
        'annotations': annotations,
        'categories': categories,
        'images': images,
    }.items():
        lines = ','.join('\n' + json.dumps(entry, sort_keys=True) for entry in entries)
        parts.append(f'"{key}": [{lines}\n]')
    parts.append('"info": ' + json.dumps({'description': MADE_BY, 'version': str(FORMAT)}))
    content = ('{' + ',\n'.join(parts) + '}\n').encode()
    if path.is_file() and path.read_bytes() == content:
        return False
    with replacing(path) as file:
        file.write(content)
    return True
