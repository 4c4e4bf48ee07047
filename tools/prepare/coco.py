"""COCO: label maps of all 133 classes from the panoptic annotations, for mIoU."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from command_line import UsageError

from prepare.annotations import Outcome
from prepare.files import Layout, is_whole_png, read_json, read_map, read_size, write_png
from prepare.progress import convert_all, show_progress
from prepare.segments import from_colors

IGNORED = 255


class LabelMap(NamedTuple):
    """A label map to make; ``segments`` are pairs of segment id and category id."""

    source: Path
    target: Path
    segments: list[tuple[int, int]]


def make_semantic(root: Path, out: Path, splits: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Make ``panoptic_semseg_{train,val}2017/*.png``: classes 0 to 132, 255 for none."""
    from mmseg_m2f.metadata import load_metadata

    category_ids = load_metadata('coco_panoptic').category_ids
    class_of = {category: index for index, category in enumerate(category_ids)}
    layout = Layout(
        root, 'annotations/panoptic_{train,val}2017.json and annotations/panoptic_{train,val}2017/'
    )
    for split in splits:
        _require(layout, f'annotations/panoptic_{split}2017')
    plan = [(split, _label_maps(layout, out, split, class_of)) for split in splits]
    for split, maps in plan:
        results = convert_all(partial(make_label_map, class_of), maps, workers)
        written = sum(new for _, new in show_progress(split, results, len(maps)))
        segments = sum(len(label_map.segments) for label_map in maps)
        folder = out / f'panoptic_semseg_{split}2017'
        yield Outcome(len(maps), segments, len(maps) - written, folder)


def _require(layout: Layout, name: str) -> None:
    layout.require_file(f'{name}.json')
    if not (layout.root / name).is_dir():
        archive = layout.root / f'{name}.zip'
        remark = f' ({archive} is there: unpack it beside itself)' if archive.is_file() else ''
        raise layout.missing(layout.root / name, remark)


def _label_maps(layout: Layout, out: Path, split: str, class_of: dict[int, int]) -> list[LabelMap]:
    path = layout.root / f'annotations/panoptic_{split}2017.json'
    content = read_json(path, _shorten)
    folder = path.with_suffix('')
    maps = []
    for annotation in sorted(content['annotations'], key=lambda entry: entry['file_name']):
        name, segments = annotation['file_name'], annotation['segments_info']
        unknown = [category for _, category in segments if category not in class_of]
        if unknown:
            raise UsageError(f'{path}: {name} has a segment of category {unknown[0]}, not of COCO')
        target = out / f'panoptic_semseg_{split}2017/{name}'
        maps.append(LabelMap(folder / name, target, segments))
    layout.require(folder, [label_map.source.name for label_map in maps])
    return maps


def _shorten(entry: dict[str, Any]) -> Any:
    # More than a million segments: two numbers of each are enough, and fit into the memory.
    if 'category_id' in entry and 'id' in entry:
        return entry['id'], entry['category_id']
    return entry


def make_label_map(class_of: dict[int, int], label_map: LabelMap) -> bool:
    """Make a label map, 255 outside the segments, and return whether it had to be written."""
    import numpy as np

    source, target, segments = label_map
    if is_whole_png(target) and read_size(target) == read_size(source):
        return False
    ids = from_colors(read_map(source))
    values, index = np.unique(ids, return_inverse=True)
    label_of = {number: class_of[category] for number, category in segments}
    labels = [label_of.get(value, IGNORED) for value in values.tolist()]
    write_png(target, np.array(labels, np.uint8)[index].reshape(ids.shape))
    return True
