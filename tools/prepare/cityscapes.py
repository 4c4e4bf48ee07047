"""Cityscapes: panoptic and instance annotations from the ``*_gtFine_instanceIds.png`` files.

A pixel there holds ``1000 * label + number`` for an instance and the bare label for stuff, and for
a group of things that could not be told apart: a crowd.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
from prepare.files import Layout, keep_or_write_png, read_map
from prepare.segments import encode_masks, measure, to_colors

if TYPE_CHECKING:
    import numpy as np

IDS = '_gtFine_instanceIds.png'
PHOTO = '_leftImg8bit.png'
FIRST_INSTANCE = 1000
# Labels end at 33, and an image has fewer than 1000 instances of a label.
LARGEST_ID = 33_999


def make_panoptic(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``gtFine/cityscapes_panoptic_{train,val}.json`` and the folders of PNG files."""
    from mmseg_m2f.metadata import load_metadata

    metadata = load_metadata('cityscapes')
    categories = panoptic_categories(metadata)
    things = {category['id'] for category in categories if category['isthing']}
    convert = partial(panoptic_record, frozenset(metadata.category_ids), frozenset(things))
    return make(_plan('panoptic', root, out, splits, categories, convert), workers)


def make_instance(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``gtFine/cityscapes_instance_{train,val}.json`` in COCO's format."""
    from mmseg_m2f.metadata import load_metadata

    metadata = load_metadata('cityscapes_instance')
    categories = instance_categories(metadata)
    convert = partial(instance_record, frozenset(metadata.category_ids))
    return make(_plan('instance', root, out, splits, categories, convert), workers)


def _plan(
    task: str,
    root: Path,
    out: Path,
    splits: Sequence[str],
    categories: list[Json],
    convert: Callable[[Image], Record],
) -> list[Split]:
    """Look everything up before anything is written."""
    layout = Layout(
        root,
        f'gtFine/{{train,val}}/CITY/*{IDS} and leftImg8bit/{{train,val}}/CITY/*{PHOTO}',
    )
    plan = []
    for split in splits:
        labels = layout.folder(f'gtFine/{split}')
        photos = layout.folder(f'leftImg8bit/{split}')
        name = f'cityscapes_{task}_{split}'
        images = []
        for city in sorted(path.name for path in labels.iterdir() if path.is_dir()):
            stems = [file.removesuffix(IDS) for file in layout.names(labels / city, IDS)]
            layout.require(photos / city, [f'{stem}{PHOTO}' for stem in stems])
            for stem in stems:
                target = out / f'gtFine/{name}/{stem}_gtFine_panoptic.png'
                images.append(
                    Image(
                        stem,
                        f'{city}/{stem}{PHOTO}',
                        (labels / city / f'{stem}{IDS}',),
                        target if task == 'panoptic' else None,
                    )
                )
        if not images:
            raise layout.missing(labels / f'CITY/*{IDS}')
        plan.append(
            Split(
                name=split,
                path=out / f'gtFine/{name}.json',
                root=root,
                images=images,
                categories=categories,
                convert=convert,
                numbered=task == 'instance',
            )
        )
    return plan


def panoptic_record(labels: frozenset[int], things: frozenset[int], image: Image) -> Record:
    """Return the segments of an image, with the ids that cityscapesScripts gives them."""
    import numpy as np

    ids = _read_ids(image.sources[0])
    segments = []
    kept = np.zeros(LARGEST_ID + 1, bool)
    for value, extent in measure(ids).items():
        label = _label(value)
        if label in labels:
            kept[value] = True
            is_crowd = value < FIRST_INSTANCE and label in things
            segments.append(segment_entry(extent, label, is_crowd, id=value))
    assert image.target is not None
    written = keep_or_write_png(image.target, to_colors(np.where(kept[ids], ids, 0)))
    return Record(image_entry(image, ids.shape), segments, written)


def instance_record(labels: frozenset[int], image: Image) -> Record:
    """Return the masks of an image: instances, and groups as crowds."""
    ids = _read_ids(image.sources[0])
    extents = {value: extent for value, extent in measure(ids).items() if _label(value) in labels}
    masks = encode_masks(ids, list(extents))
    annotations = [
        segment_entry(extent, _label(value), value < FIRST_INSTANCE, segmentation=mask)
        for (value, extent), mask in zip(extents.items(), masks, strict=True)
    ]
    return Record(image_entry(image, ids.shape), annotations)


def _label(value: int) -> int:
    return value if value < FIRST_INSTANCE else value // FIRST_INSTANCE


def _read_ids(path: Path) -> 'np.ndarray':
    import numpy as np

    ids = read_map(path)
    if ids.ndim != 2 or ids.max() > LARGEST_ID or ids.min() < 0:
        raise UsageError(f'{path} should be a grey image with values from 0 to {LARGEST_ID}')
    return ids.astype(np.int32)
