"""ADE20K (ADEChallengeData2016 with the instances of 2017): panoptic and instance annotations."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from command_line import UsageError

from mmseg_m2f.metadata import load_metadata
from prepare import annotations as coco
from prepare.annotations import Image, Outcome, Record, Split, Task
from prepare.files import Layout, read_map, read_size

FOLDERS = {'train': 'training', 'val': 'validation'}


def make_panoptic(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``ade20k_panoptic_{train,val}.json`` and the PNG files in folders of these names."""
    metadata = load_metadata('ade20k')
    stuff = tuple(i for i in range(len(metadata.classes)) if i not in metadata.thing_ids)
    convert = partial(panoptic_record, stuff, load_metadata('ade20k_instance').category_ids)
    task = Task('panoptic', coco.panoptic_categories(metadata), convert)
    folders = ('images', 'annotations', 'annotations_instance')
    return coco.make(_plan(task, folders, root, out, splits), workers)


def make_instance(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``ade20k_instance_{train,val}.json`` in COCO's format."""
    metadata = load_metadata('ade20k_instance')
    convert = partial(instance_record, metadata.category_ids)
    task = Task('instance', coco.instance_categories(metadata), convert)
    return coco.make(_plan(task, ('images', 'annotations_instance'), root, out, splits), workers)


def _plan(
    task: Task, folders: Sequence[str], root: Path, out: Path, splits: Sequence[str]
) -> list[Split]:
    """Look everything up before anything is written."""
    names = ', '.join(f'{folder}/' for folder in folders)
    layout = Layout(root, f'{names} each with training/*, validation/*')
    plan = []
    for split in splits:
        photos, *maps = (layout.path(f'{folder}/{FOLDERS[split]}') for folder in folders)
        stems = [name.removesuffix('.jpg') for name in layout.names(photos, '.jpg')]
        for folder in maps:
            layout.require(folder, [f'{stem}.png' for stem in stems])
        name = f'ade20k_{task.name}_{split}'
        images = []
        for stem in stems:
            sources = (photos / f'{stem}.jpg', *(folder / f'{stem}.png' for folder in maps))
            target = out / name / f'{stem}.png' if task.name == 'panoptic' else None
            images.append(Image(stem, f'{stem}.jpg', sources, target))
        plan.append(Split(split, out / f'{name}.json', root, images, task))
    return plan


def panoptic_record(stuff: Sequence[int], thing_categories: Sequence[int], image: Image) -> Record:
    """Write the id map of an image: stuff from the semantic map, and instances over it.

    Like in the official preparation, area and box of stuff are those before instances cover it, and
    a thing's pixels in the semantic map that no instance claims are void.
    """
    photo, semantic_path, instance_path = image.sources
    size = read_size(photo)
    semantic = _read(semantic_path, size, 2)
    if semantic.max() > 150:
        raise UsageError(f'{semantic_path} holds label {semantic.max()}; 0 to 150 are allowed')
    pixels = np.bincount(semantic.ravel(), minlength=151)
    present = [index for index in stuff if pixels[index + 1]]
    numbers = np.zeros(256, np.int32)
    numbers[[index + 1 for index in present]] = np.arange(1, len(present) + 1)
    ids = numbers[semantic]
    segments = [
        coco.segment_entry(extent, present[number - 1], id=number)
        for number, extent in coco.measure(ids).items()
    ]
    instances, categories = _read_instances(instance_path, size, len(thing_categories))
    for number, (value, extent) in enumerate(coco.measure(instances).items(), len(present) + 1):
        category = thing_categories[categories[value] - 1]
        segments.append(coco.segment_entry(extent, category, id=number))
        ids[instances == value] = number
    written = coco.keep_or_write_ids(image.target, ids)
    return Record(coco.image_entry(image, size), segments, written)


def instance_record(thing_categories: Sequence[int], image: Image) -> Record:
    """Return the record of an image with each instance as a mask."""
    photo, instance_path = image.sources
    size = read_size(photo)
    ids, categories = _read_instances(instance_path, size, len(thing_categories))
    extents = coco.measure(ids)
    masks = coco.encode_masks(ids, extents)
    annotations = [
        coco.segment_entry(extent, thing_categories[categories[value] - 1], segmentation=mask)
        for (value, extent), mask in zip(extents.items(), masks, strict=True)
    ]
    return Record(coco.image_entry(image, size), annotations)


def _read_instances(
    path: Path, size: tuple[int, int], num_categories: int
) -> tuple[np.ndarray, dict[int, int]]:
    """Return instance ids ``(height, width)``, 0 for none, and the category 1..100 of each.

    Red is the category, green the number of the instance.
    """
    pixels = _read(path, size, 3)
    ids = pixels[..., 1]
    pairs = np.bincount((ids.astype(np.int32) << 8 | pixels[..., 0]).ravel(), minlength=1 << 16)
    categories: dict[int, int] = {}
    for pair in np.flatnonzero(pairs[256:]) + 256:
        value, category = divmod(int(pair), 256)
        if value in categories or not 1 <= category <= num_categories:
            raise UsageError(
                f'{path}: instance {value} has category {category}'
                + (f' and {categories[value]}' if value in categories else '')
                + f'; it should have one of 1 to {num_categories}'
            )
        categories[value] = category
    return ids, categories


def _read(path: Path, size: tuple[int, int], dimensions: int) -> np.ndarray:
    pixels = read_map(path)
    if pixels.dtype.name != 'uint8' or pixels.ndim != dimensions:
        kind = 'a gray' if dimensions == 2 else 'an RGB'
        raise UsageError(f'{path} should be {kind} image of 8 bits')
    if pixels.shape[:2] != size:
        raise UsageError(f'{path} is of size {pixels.shape[:2]}, its photo of {size}')
    return pixels
