"""ADE20K (ADEChallengeData2016 with the instances of 2017): panoptic and instance annotations."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from command_line import UsageError

from prepare.annotations import (
    Image,
    Json,
    Outcome,
    Record,
    Split,
    image_entry,
    instance_categories,
    make,
    panoptic_categories,
    segment_entry,
)
from prepare.files import Layout, keep_or_write_png, read_map, read_size
from prepare.segments import encode_masks, measure, to_colors

if TYPE_CHECKING:
    import numpy as np

FOLDERS = {'train': 'training', 'val': 'validation'}


class Instances(NamedTuple):
    """Instance ids ``(height, width)``, 0 for none, and the category 1..100 of each id."""

    ids: 'np.ndarray'
    categories: dict[int, int]


def make_panoptic(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``ade20k_panoptic_{train,val}.json`` and the PNG files in folders of these names."""
    from mmseg_m2f.metadata import load_metadata

    metadata = load_metadata('ade20k')
    stuff = tuple(i for i in range(len(metadata.classes)) if i not in metadata.thing_ids)
    convert = partial(panoptic_record, stuff, load_metadata('ade20k_instance').category_ids)
    categories = panoptic_categories(metadata)
    folders = ('images', 'annotations', 'annotations_instance')
    return make(_plan('panoptic', folders, root, out, splits, categories, convert), workers)


def make_instance(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``ade20k_instance_{train,val}.json`` in COCO's format."""
    from mmseg_m2f.metadata import load_metadata

    metadata = load_metadata('ade20k_instance')
    convert = partial(instance_record, metadata.category_ids)
    categories = instance_categories(metadata)
    folders = ('images', 'annotations_instance')
    return make(_plan('instance', folders, root, out, splits, categories, convert), workers)


def _plan(
    task: str,
    folders: Sequence[str],
    root: Path,
    out: Path,
    splits: Sequence[str],
    categories: list[Json],
    convert: Callable[[Image], Record],
) -> list[Split]:
    """Look everything up before anything is written."""
    names = ', '.join(f'{folder}/' for folder in folders)
    layout = Layout(root, f'{names} each with training/*, validation/*')
    plan = []
    for split in splits:
        photos, *maps = (layout.folder(f'{folder}/{FOLDERS[split]}') for folder in folders)
        stems = [name.removesuffix('.jpg') for name in layout.names(photos, '.jpg')]
        for folder in maps:
            layout.require(folder, [f'{stem}.png' for stem in stems])
        images = [
            Image(
                stem,
                f'{stem}.jpg',
                (photos / f'{stem}.jpg', *(folder / f'{stem}.png' for folder in maps)),
                out / f'ade20k_panoptic_{split}/{stem}.png' if task == 'panoptic' else None,
            )
            for stem in stems
        ]
        path = out / f'ade20k_{task}_{split}.json'
        plan.append(
            Split(
                name=split,
                path=path,
                root=root,
                images=images,
                categories=categories,
                convert=convert,
                numbered=task == 'instance',
            )
        )
    return plan


def panoptic_record(stuff: Sequence[int], thing_categories: Sequence[int], image: Image) -> Record:
    """Write the id map of an image: stuff from the semantic map, and instances over it.

    Like in the official preparation, area and box of stuff are those before instances cover it, and
    a thing's pixels in the semantic map that no instance claims are void.
    """
    import numpy as np

    photo, semantic_path, instance_path = image.sources
    size = read_size(photo)
    semantic = read_map(semantic_path)
    _check(semantic_path, semantic, size, 2)
    if semantic.max() > 150:
        raise UsageError(f'{semantic_path} holds label {semantic.max()}; 0 to 150 are allowed')
    pixels = np.bincount(semantic.ravel(), minlength=151)
    present = [index for index in stuff if pixels[index + 1]]
    numbers = np.zeros(256, np.int32)
    numbers[[index + 1 for index in present]] = np.arange(1, len(present) + 1)
    ids = numbers[semantic]
    segments = [
        segment_entry(extent, present[number - 1], id=number)
        for number, extent in measure(ids).items()
    ]
    instances = _read_instances(instance_path, size, len(thing_categories))
    for number, (value, extent) in enumerate(measure(instances.ids).items(), len(present) + 1):
        category = thing_categories[instances.categories[value] - 1]
        segments.append(segment_entry(extent, category, id=number))
        ids[instances.ids == value] = number
    assert image.target is not None
    written = keep_or_write_png(image.target, to_colors(ids))
    return Record(image_entry(image, size), segments, written)


def instance_record(thing_categories: Sequence[int], image: Image) -> Record:
    """Return the record of an image with each instance as a mask."""
    photo, instance_path = image.sources
    size = read_size(photo)
    instances = _read_instances(instance_path, size, len(thing_categories))
    extents = measure(instances.ids)
    masks = encode_masks(instances.ids, list(extents))
    annotations = [
        segment_entry(extent, thing_categories[instances.categories[value] - 1], segmentation=mask)
        for (value, extent), mask in zip(extents.items(), masks, strict=True)
    ]
    return Record(image_entry(image, size), annotations)


def _read_instances(path: Path, size: tuple[int, int], num_categories: int) -> Instances:
    """Read an instance map: red is the category, green the number of the instance, 0 none."""
    import numpy as np

    pixels = read_map(path)
    _check(path, pixels, size, 3)
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
    return Instances(ids, categories)


def _check(path: Path, pixels: 'np.ndarray', size: tuple[int, int], dimensions: int) -> None:
    if pixels.dtype.name != 'uint8' or pixels.ndim != dimensions:
        kind = 'a grey' if dimensions == 2 else 'an RGB'
        raise UsageError(f'{path} should be {kind} image of 8 bits')
    if pixels.shape[:2] != size:
        raise UsageError(f'{path} is of size {pixels.shape[:2]}, its photo of {size}')
