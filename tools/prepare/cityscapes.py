"""Cityscapes: panoptic and instance annotations from the ``*_gtFine_instanceIds.png`` files.

A pixel there holds ``1000 * label + number`` for an instance and the bare label for stuff, and for
a group of things that could not be told apart: a crowd.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from command_line import UsageError

from mmseg_m2f.metadata import load_metadata
from prepare import annotations as coco
from prepare.annotations import Image, Outcome, Record, Split, Task
from prepare.files import Layout, read_map

IDS = '_gtFine_instanceIds.png'
PHOTO = '_leftImg8bit.png'
FIRST_INSTANCE = 1000
# Labels end at 33, and an image has fewer than 1000 instances of a label.
LARGEST_ID = 33_999


def make_panoptic(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``gtFine/cityscapes_panoptic_{train,val}.json`` and the folders of PNG files."""
    metadata = load_metadata('cityscapes')
    categories = coco.panoptic_categories(metadata)
    things = {category['id'] for category in categories if category['isthing']}
    convert = partial(panoptic_record, frozenset(metadata.category_ids), frozenset(things))
    return coco.make(_plan(Task('panoptic', categories, convert), root, out, splits), workers)


def make_instance(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``gtFine/cityscapes_instance_{train,val}.json`` in COCO's format."""
    metadata = load_metadata('cityscapes_instance')
    convert = partial(instance_record, frozenset(metadata.category_ids))
    task = Task('instance', coco.instance_categories(metadata), convert)
    return coco.make(_plan(task, root, out, splits), workers)


def _plan(task: Task, root: Path, out: Path, splits: Sequence[str]) -> list[Split]:
    """Look everything up before anything is written."""
    expected = f'gtFine/{{train,val}}/CITY/*{IDS} and leftImg8bit/{{train,val}}/CITY/*{PHOTO}'
    layout = Layout(root, expected)
    plan = []
    for split in splits:
        labels = layout.path(f'gtFine/{split}')
        photos = layout.path(f'leftImg8bit/{split}')
        name = f'cityscapes_{task.name}_{split}'
        images = []
        for city in sorted(path.name for path in labels.iterdir() if path.is_dir()):
            stems = [file.removesuffix(IDS) for file in layout.names(labels / city, IDS)]
            layout.require(photos / city, [f'{stem}{PHOTO}' for stem in stems])
            for stem in stems:
                source = labels / city / f'{stem}{IDS}'
                target = out / f'gtFine/{name}/{stem}_gtFine_panoptic.png'
                png = target if task.name == 'panoptic' else None
                images.append(Image(stem, f'{city}/{stem}{PHOTO}', (source,), png))
        if not images:
            raise layout.missing(labels / f'CITY/*{IDS}')
        plan.append(Split(split, out / f'gtFine/{name}.json', root, images, task))
    return plan


def panoptic_record(labels: frozenset[int], things: frozenset[int], image: Image) -> Record:
    """Return the segments of an image, with the ids that cityscapesScripts gives them."""
    ids = _read_ids(image.sources[0])
    segments = []
    kept = np.zeros(LARGEST_ID + 1, bool)
    for value, extent in coco.measure(ids).items():
        label = _label(value)
        if label in labels:
            kept[value] = True
            is_crowd = value < FIRST_INSTANCE and label in things
            segments.append(coco.segment_entry(extent, label, is_crowd, id=value))
    written = coco.keep_or_write_ids(image.target, np.where(kept[ids], ids, 0))
    return Record(coco.image_entry(image, ids.shape), segments, written)


def instance_record(labels: frozenset[int], image: Image) -> Record:
    """Return the masks of an image: instances, and groups as crowds."""
    ids = _read_ids(image.sources[0])
    extents = {value: box for value, box in coco.measure(ids).items() if _label(value) in labels}
    masks = coco.encode_masks(ids, extents)
    annotations = [
        coco.segment_entry(extent, _label(value), value < FIRST_INSTANCE, segmentation=mask)
        for (value, extent), mask in zip(extents.items(), masks, strict=True)
    ]
    return Record(coco.image_entry(image, ids.shape), annotations)


def _label(value: int) -> int:
    return value if value < FIRST_INSTANCE else value // FIRST_INSTANCE


def _read_ids(path: Path) -> np.ndarray:
    ids = read_map(path)
    if ids.ndim != 2 or ids.max() > LARGEST_ID or ids.min() < 0:
        raise UsageError(f'{path} should be a gray image with values from 0 to {LARGEST_ID}')
    return ids.astype(np.int32)
