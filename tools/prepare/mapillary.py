"""Mapillary Vistas 1.2: the panoptic annotations of the 65 classes that are evaluated."""

import filecmp
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from command_line import UsageError

from prepare.annotations import Json, Outcome, panoptic_categories, write_dataset
from prepare.files import Layout, read_json
from prepare.progress import say

FOLDERS = {'train': 'training', 'val': 'validation'}


class Content(NamedTuple):
    """A file read; ``dropped`` counts segments of other categories, whose pixels become void."""

    annotations: list[Json]
    images: list[Json]
    segments: int
    dropped: int


def make_panoptic(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``annotations/panoptic_{training,validation}.json``; the PNG files stay in place."""
    from mmseg_m2f.metadata import load_metadata

    metadata = load_metadata('mapillary')
    categories = panoptic_categories(metadata)
    layout = Layout(
        root, '{training,validation}/ with images/, labels/, panoptic/ and panoptic_2018.json in it'
    )
    for split in splits:
        for folder in ('images', 'labels', 'panoptic'):
            layout.folder(f'{FOLDERS[split]}/{folder}')
        layout.require_file(f'{FOLDERS[split]}/panoptic/panoptic_2018.json')
    known = frozenset(metadata.category_ids)
    plan = [(split, _read(layout, FOLDERS[split], known)) for split in splits]
    for split, content in plan:
        path = out / f'annotations/panoptic_{FOLDERS[split]}.json'
        is_new = _write(path, content, categories)
        if content.dropped:
            say(f'{split}: {content.dropped} segments of no evaluated class are void')
        images = len(content.images)
        yield Outcome(images, content.segments, 0 if is_new else images, path)


def _read(layout: Layout, folder: str, known: frozenset[int]) -> Content:
    path = layout.root / folder / 'panoptic/panoptic_2018.json'
    content = read_json(path)
    sizes = {image['id']: image for image in content['images']}
    annotations, images, dropped = [], [], 0
    for annotation in sorted(content['annotations'], key=lambda entry: entry['file_name']):
        name, image_id = annotation['file_name'], annotation['image_id']
        if image_id not in sizes:
            raise UsageError(f'{path}: {name} is of image {image_id}, which is not listed')
        given = annotation['segments_info']
        segments = [segment for segment in given if segment['category_id'] in known]
        dropped += len(given) - len(segments)
        annotations.append({'file_name': name, 'image_id': image_id, 'segments_info': segments})
        size = {key: sizes[image_id][key] for key in ('height', 'width')}
        photo = f'{name.removesuffix(".png")}.jpg'
        images.append({'file_name': photo, 'id': image_id, **size})
    names = [annotation['file_name'] for annotation in annotations]
    layout.require(layout.root / folder / 'panoptic', names)
    layout.require(layout.root / folder / 'labels', names)
    layout.require(layout.root / folder / 'images', [image['file_name'] for image in images])
    segments_kept = sum(len(annotation['segments_info']) for annotation in annotations)
    return Content(annotations, images, segments_kept, dropped)


def _write(path: Path, content: Content, categories: list[Json]) -> bool:
    """Write the file unless it has this content; return whether it was written."""
    new = path.with_name(f'{path.name}.new')
    write_dataset(new, content.annotations, categories, content.images)
    if path.is_file() and filecmp.cmp(new, path, shallow=False):
        new.unlink()
        return False
    new.replace(path)
    return True
