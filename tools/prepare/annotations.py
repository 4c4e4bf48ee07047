"""Write one JSON file for each split from one record for each image. Interrupted work goes on.

The records are kept beside the JSON file, in ``NAME.json.part``, until that file is whole.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from command_line import UsageError

from prepare.files import is_whole_png, read_json, replacing
from prepare.progress import convert_all, say, show_progress
from prepare.segments import Extent

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


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split to make; ``numbered``: ids count from 1, which is COCO's instance format."""

    name: str
    path: Path
    root: Path
    images: Sequence[Image]
    categories: list[Json]
    convert: Callable[[Image], Record]
    numbered: bool


def panoptic_categories(metadata: 'DatasetMetadata') -> list[Json]:
    """Return the categories in COCO's panoptic format, in the order of the classes."""
    columns = zip(metadata.category_ids, metadata.classes, metadata.palette, strict=True)
    return [
        {
            'color': list(color),
            'id': category_id,
            'isthing': int(index in metadata.thing_ids),
            'name': name,
        }
        for index, (category_id, name, color) in enumerate(columns)
    ]


def instance_categories(metadata: 'DatasetMetadata') -> list[Json]:
    """Return the categories in COCO's instance format, in the order of the classes."""
    columns = zip(metadata.category_ids, metadata.classes, strict=True)
    return [{'id': category_id, 'name': name} for category_id, name in columns]


def image_entry(image: Image, size: Sequence[int]) -> Json:
    """Return the entry of an image of ``(height, width)`` without its id."""
    return {'file_name': image.file_name, 'height': size[0], 'width': size[1]}


def segment_entry(extent: Extent, category_id: int, is_crowd: bool = False, **more: Any) -> Json:
    """Return the entry of a segment, with ``id`` (panoptic) or ``segmentation`` (instance)."""
    return {**extent._asdict(), 'category_id': category_id, 'iscrowd': int(is_crowd), **more}


def make(plan: Iterable[Split], workers: int) -> Iterator[Outcome]:
    """Make what is missing of each split."""
    for split in plan:
        yield _make_split(split, workers)


def _make_split(split: Split, workers: int) -> Outcome:
    found = _finished(split)
    if found is not None:
        lost = [image for image in split.images if not _has_png(image)]
        if not lost or found.get('info', {}).get('description') == MADE_BY:
            _part_path(split).unlink(missing_ok=True)
            kept = len(split.images) - len(lost)
            remade = convert_all(split.convert, lost, workers)
            for _ in show_progress(split.name, remade, len(lost)):
                pass
            return _outcome(split, found['annotations'], kept)
        say(f'{split.name}: {split.path} was made by another tool and lacks PNG files: all anew')
    elif split.path.exists():
        say(f'{split.name}: {split.path} is not what the configs read: made anew')
    with _journal(split) as (records, add):
        todo = [image for image in split.images if not (image.name in records and _has_png(image))]
        kept = len(split.images) - len(todo)
        if kept:
            say(f'{split.name}: {kept} of {len(split.images)} images are done already')
        results = convert_all(split.convert, todo, workers)
        for image, record in show_progress(split.name, results, len(todo)):
            add(image.name, record)
            kept += image.target is not None and not record.written
    annotations, images = _entries(split, [records[image.name] for image in split.images])
    write_dataset(split.path, annotations, split.categories, images)
    _part_path(split).unlink()
    return _outcome(split, annotations, kept)


def _part_path(split: Split) -> Path:
    return split.path.with_name(f'{split.path.name}.part')


@contextlib.contextmanager
def _journal(split: Split) -> Iterator[tuple[dict[str, list[Any]], Callable[[str, Record], None]]]:
    """Open the file of finished records: a heading, then a record on each line.

    Give the entries by name, and a function that adds one and writes it at once: an interrupt does
    not lose it.
    """
    heading = {'format': FORMAT, 'made_by': MADE_BY, 'root': os.path.abspath(split.root)}
    path, first = _part_path(split), json.dumps(heading)
    # The last line is empty, or the half line of an interrupted run.
    found, *lines = path.read_text().split('\n') if path.is_file() else ['']
    lines = lines[:-1] if found == first else []
    with replacing(path, 'w') as file:
        file.writelines(f'{line}\n' for line in [first, *lines])
    records = {name: entries for name, *entries in map(json.loads, lines)}
    with path.open('a') as file:

        def add(name: str, record: Record) -> None:
            records[name] = [record.image, record.annotations]
            file.write(json.dumps([name, *records[name]]) + '\n')
            file.flush()

        yield records, add


def _finished(split: Split) -> Json | None:
    """Return the existing JSON file if it is of these images and categories."""
    if not split.path.is_file():
        return None
    # Other tools name the photos differently in the panoptic format, but agree on the ids.
    key, names = 'id', [image.name for image in split.images]
    if split.numbered:
        key, names = 'file_name', [image.file_name for image in split.images]
    try:
        found = read_json(split.path)
        images = sorted(image[key] for image in found['images'])
        categories = [category['id'] for category in found['categories']]
    except (UsageError, KeyError, TypeError):
        return None
    same = [category['id'] for category in split.categories]
    return found if (images, categories) == (sorted(names), same) else None


def _has_png(image: Image) -> bool:
    return image.target is None or is_whole_png(image.target)


def _outcome(split: Split, annotations: Sequence[Json], kept: int) -> Outcome:
    segments = len(annotations)
    if not split.numbered:
        segments = sum(len(annotation['segments_info']) for annotation in annotations)
    return Outcome(len(split.images), segments, kept, split.path)


def _entries(split: Split, records: Sequence[Sequence[Any]]) -> tuple[list[Json], list[Json]]:
    """Return the annotations and the images of the JSON file, with their ids."""
    annotations: list[Json] = []
    images: list[Json] = []
    for number, (image, (entry, segments)) in enumerate(zip(split.images, records, strict=True), 1):
        # Numbers, not names: several readers of COCO's format turn the ids into integers.
        image_id = number if split.numbered else image.name
        images.append({**entry, 'id': image_id})
        if split.numbered:
            first = len(annotations) + 1
            annotations += [
                {**segment, 'id': i, 'image_id': image_id}
                for i, segment in enumerate(segments, first)
            ]
        else:
            assert image.target is not None
            annotations.append(
                {'file_name': image.target.name, 'image_id': image_id, 'segments_info': segments}
            )
    return annotations, images


def write_dataset(
    path: Path, annotations: Iterable[Json], categories: list[Json], images: Iterable[Json]
) -> None:
    """Write a JSON file: an entry on each line, sorted keys, nothing that depends on the time."""
    info = {'description': MADE_BY, 'version': str(FORMAT)}
    with replacing(path, 'w') as file:
        for key, entries in (
            ('annotations', annotations),
            ('categories', categories),
            ('images', images),
        ):
            file.write('{' if key == 'annotations' else ',\n')
            file.write(f'"{key}": [')
            for number, entry in enumerate(entries):
                file.write(',\n' if number else '\n')
                file.write(json.dumps(entry, sort_keys=True))
            file.write('\n]')
        file.write(f',\n"info": {json.dumps(info, sort_keys=True)}}}\n')
        file.flush()
        os.fsync(file.fileno())
