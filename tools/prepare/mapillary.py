"""Mapillary Vistas 1.2: the panoptic annotations of the 65 classes that are evaluated."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from command_line import UsageError

from mmseg_m2f.metadata import load_metadata
from prepare.annotations import Json, Outcome, panoptic_categories, write_dataset
from prepare.files import Layout, read_json
from prepare.progress import say

FOLDERS = {'train': 'training', 'val': 'validation'}


def make_panoptic(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``annotations/panoptic_{training,validation}.json``; the PNG files stay in place."""
    metadata = load_metadata('mapillary')
    layout = Layout(
        root, '{training,validation}/ with images/, labels/, panoptic/ and panoptic_2018.json in it'
    )
    for split in splits:
        for name in ('images', 'labels', 'panoptic', 'panoptic/panoptic_2018.json'):
            layout.path(f'{FOLDERS[split]}/{name}')
    known = frozenset(metadata.category_ids)
    plan = [(split, *_read(layout, FOLDERS[split], known)) for split in splits]
    for split, annotations, images, dropped in plan:
        path = out / f'annotations/panoptic_{FOLDERS[split]}.json'
        is_new = write_dataset(path, annotations, panoptic_categories(metadata), images)
        if dropped:
            say(f'{split}: {dropped} segments of no evaluated class are void')
        segments = sum(len(annotation['segments_info']) for annotation in annotations)
        yield Outcome(len(images), segments, 0 if is_new else len(images), path)


def _read(layout: Layout, folder: str, known: frozenset[int]) -> tuple[list[Json], list[Json], int]:
    """Return annotations, images, and how many segments of other categories were dropped."""
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
    return annotations, images, dropped
