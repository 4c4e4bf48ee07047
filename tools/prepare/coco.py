"""COCO: label maps of all 133 classes from the panoptic annotations, for mIoU."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from command_line import UsageError

from mmseg_m2f.metadata import load_metadata
from prepare.annotations import Outcome, from_colors
from prepare.files import Layout, is_whole_png, read_json, read_map, read_size, write_png
from prepare.progress import convert_all, show_progress

IGNORED = 255


class LabelMap(NamedTuple):
    """A label map to make; ``segments`` are pairs of segment id and category id."""

    source: Path
    target: Path
    segments: list[tuple[int, int]]


def make_semantic(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``panoptic_semseg_{train,val}2017/*.png``: classes 0 to 132, 255 for none."""
    category_ids = load_metadata('coco_panoptic').category_ids
    class_of = {category: index for index, category in enumerate(category_ids)}
    layout = Layout(
        root, 'annotations/panoptic_{train,val}2017.json and annotations/panoptic_{train,val}2017/'
    )
    sources = [_source(layout, f'annotations/panoptic_{split}2017') for split in splits]
    targets = [out / f'panoptic_semseg_{split}2017' for split in splits]
    plan = [_label_maps(layout, *pair, class_of) for pair in zip(sources, targets, strict=True)]
    for split, target, maps in zip(splits, targets, plan, strict=True):
        results = convert_all(partial(make_label_map, class_of), maps, workers)
        written = sum(show_progress(split, results, len(maps)))
        segments = sum(len(label_map.segments) for label_map in maps)
        yield Outcome(len(maps), segments, len(maps) - written, target)


def _source(layout: Layout, name: str) -> Path:
    layout.path(f'{name}.json')
    archive = layout.root / f'{name}.zip'
    if archive.is_file() and not (layout.root / name).is_dir():
        remark = f' ({archive} is there: unpack it beside itself)'
        raise layout.missing(layout.root / name, remark)
    return layout.path(name)


def _label_maps(
    layout: Layout, source: Path, target: Path, class_of: dict[int, int]
) -> list[LabelMap]:
    path = source.with_suffix('.json')
    content = read_json(path, _shorten)
    maps = []
    for annotation in sorted(content['annotations'], key=lambda entry: entry['file_name']):
        name, segments = annotation['file_name'], annotation['segments_info']
        unknown = [category for _, category in segments if category not in class_of]
        if unknown:
            raise UsageError(f'{path}: {name} has a segment of category {unknown[0]}, not of COCO')
        maps.append(LabelMap(source / name, target / name, segments))
    layout.require(source, [label_map.source.name for label_map in maps])
    return maps


def _shorten(entry: dict[str, Any]) -> Any:
    # More than a million segments: two numbers of each are enough, and fit into the memory.
    if 'category_id' in entry and 'id' in entry:
        return entry['id'], entry['category_id']
    return entry


def make_label_map(class_of: dict[int, int], label_map: LabelMap) -> bool:
    """Make a label map, 255 outside the segments, and return whether it had to be written."""
    source, target, segments = label_map
    if is_whole_png(target) and read_size(target) == read_size(source):
        return False
    ids = from_colors(read_map(source))
    values, index = np.unique(ids, return_inverse=True)
    label_of = {number: class_of[category] for number, category in segments}
    labels = [label_of.get(value, IGNORED) for value in values.tolist()]
    write_png(target, np.array(labels, np.uint8)[index].reshape(ids.shape))
    return True
