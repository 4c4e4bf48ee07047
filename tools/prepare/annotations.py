"""Write one JSON file for each split from one record for each image. Interrupted work goes on.

The records are kept beside the JSON file, in ``NAME.json.part``, until that file is whole. No step
holds more than one record in memory; only a finished file that is to be checked is read at once.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from command_line import UsageError

from prepare.files import is_whole_png, read_json, replacing
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


def make(split: Split, workers: int) -> Outcome:
    """Make what is missing of a split."""
    found = _finished(split)
    if found is not None:
        lost = [image for image in split.images if not _has_png(image)]
        if not lost or found.get('info', {}).get('description') == MADE_BY:
            Journal(split).path.unlink(missing_ok=True)
            _remake(split, lost, workers)
            return _outcome(split, found, len(lost))
        say(f'{split.name}: {split.path} was made by another tool and lacks PNG files: all anew')
    elif split.path.exists():
        say(f'{split.name}: {split.path} is not what the configs read: made anew')
    with Journal(split) as journal:
        todo = [image for image in split.images if image.name not in journal or not _has_png(image)]
        kept = len(split.images) - len(todo)
        if kept:
            say(f'{split.name}: {kept} of {len(split.images)} images are done already')
        results = convert_all(split.convert, todo, workers)
        for image, record in show_progress(split.name, results, len(todo)):
            journal.add(image.name, record)
            kept += image.target is not None and not record.written
        segments = _write_json(split, journal)
    journal.path.unlink()
    return Outcome(len(split.images), segments, kept, split.path)


class Journal:
    """The file of finished records: a heading, then lines of ``name TAB record``."""

    def __init__(self, split: Split) -> None:
        self.path = split.path.with_name(f'{split.path.name}.part')
        heading = {'format': FORMAT, 'made_by': MADE_BY, 'root': os.path.abspath(split.root)}
        self._heading = json.dumps(heading).encode() + b'\n'
        self._offsets: dict[str, int] = {}

    def __enter__(self) -> 'Journal':
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open('a+b')
        self._file.seek(0)
        end = 0
        if self._file.readline() == self._heading:
            end = self._read_lines(len(self._heading))
        # Another run's records, or half a line of an interrupted one.
        self._file.truncate(end)
        if not end:
            self._file.write(self._heading)
            self._file.flush()
        return self

    def _read_lines(self, end: int) -> int:
        for line in self._file:
            if not line.endswith(b'\n'):
                break
            self._offsets[line.partition(b'\t')[0].decode()] = end
            end += len(line)
        return end

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._offsets

    def add(self, name: str, record: Record) -> None:
        """Write a record at once, so that an interrupt does not lose it."""
        line = json.dumps([record.image, record.annotations], sort_keys=True)
        self._file.seek(0, os.SEEK_END)
        self._offsets[name] = self._file.tell()
        self._file.write(f'{name}\t{line}\n'.encode())
        self._file.flush()

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Yield the records in the order of the names."""
        for name in names:
            self._file.seek(self._offsets[name])
            image, annotations = json.loads(self._file.readline().partition(b'\t')[2])
            yield Record(image, annotations)


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


def _remake(split: Split, lost: Sequence[Image], workers: int) -> None:
    results = convert_all(split.convert, lost, workers)
    for _ in show_progress(split.name, results, len(lost)):
        pass


def _outcome(split: Split, found: Json, new: int) -> Outcome:
    annotations = found['annotations']
    segments = len(annotations)
    if not split.numbered:
        segments = sum(len(annotation['segments_info']) for annotation in annotations)
    images = len(split.images)
    return Outcome(images, segments, images - new, split.path)


def _write_json(split: Split, journal: Journal) -> int:
    """Write the JSON file and return the number of segments in it."""
    names = [image.name for image in split.images]
    entries = _numbered if split.numbered else _panoptic
    segments = 0

    def annotations() -> Iterator[Json]:
        nonlocal segments
        for entry, count in entries(journal.records(names), split.images):
            segments += count
            yield entry

    images = (
        {**record.image, 'id': number if split.numbered else image.name}
        for number, (image, record) in enumerate(
            zip(split.images, journal.records(names), strict=True), 1
        )
    )
    write_dataset(split.path, annotations(), split.categories, images)
    return segments


def _numbered(records: Iterable[Record], images: Sequence[Image]) -> Iterator[tuple[Json, int]]:
    # Numbers, not names: several readers of COCO's format turn the ids of images into integers.
    annotation_id = 0
    for image_id, record in enumerate(records, 1):
        for annotation in record.annotations:
            annotation_id += 1
            yield {**annotation, 'id': annotation_id, 'image_id': image_id}, 1


def _panoptic(records: Iterable[Record], images: Sequence[Image]) -> Iterator[tuple[Json, int]]:
    for image, record in zip(images, records, strict=True):
        assert image.target is not None
        entry = {
            'file_name': image.target.name,
            'image_id': image.name,
            'segments_info': record.annotations,
        }
        yield entry, len(record.annotations)


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
