"""The published data sets in miniature: a few facade photos under the names the rows look for.

Folders and names are typed here as the data sets are published and prepared, not taken from the
configurations. The facade's classes take the places of each set's first things and first stuff.
COCO's instances are polygons that overlap in places, the others the masks of the segments.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mmseg_m2f.metadata import DatasetMetadata, load_metadata

FACADE = Path(__file__).parents[1] / 'data/tiny/facade'
SPLITS = {'train': 4, 'val': 2}
WIDTH, HEIGHT = 96, 72
SCALE = np.array([WIDTH, HEIGHT]) / 384
NUM_THINGS, NUM_STUFF = 5, 6

Json = dict[str, Any]
At = Callable[..., Path]


class Layout(NamedTuple):
    """Patterns of paths: ``{s}`` is train or val, ``{l}`` training or validation, ``{n}`` a name.

    JSON files name an image relative to ``folder``. ``shift`` is what label maps add to a class.
    """

    metadata: str
    folder: str
    image: str
    label_map: str
    segment_map: str
    panoptic: str
    instances: str | None = None
    instance_ids: str | None = None
    shift: int = 0


LAYOUTS = {
    'coco': Layout(
        metadata='coco_panoptic',
        folder='{s}2017',
        image='{n}.jpg',
        label_map='panoptic_semseg_{s}2017/{n}.png',
        segment_map='annotations/panoptic_{s}2017/{n}.png',
        panoptic='annotations/panoptic_{s}2017.json',
        instances='annotations/instances_{s}2017.json',
    ),
    'cityscapes': Layout(
        metadata='cityscapes',
        folder='leftImg8bit/{s}',
        image='facade/{n}_leftImg8bit.png',
        label_map='gtFine/{s}/facade/{n}_gtFine_labelTrainIds.png',
        segment_map='gtFine/cityscapes_panoptic_{s}/{n}_gtFine_panoptic.png',
        panoptic='gtFine/cityscapes_panoptic_{s}.json',
        instances='gtFine/cityscapes_instance_{s}.json',
        instance_ids='gtFine/{s}/facade/{n}_gtFine_instanceIds.png',
    ),
    'ade20k': Layout(
        metadata='ade20k',
        folder='images/{l}',
        image='{n}.jpg',
        label_map='annotations/{l}/{n}.png',
        segment_map='ade20k_panoptic_{s}/{n}.png',
        panoptic='ade20k_panoptic_{s}.json',
        instances='ade20k_instance_{s}.json',
        shift=1,
    ),
    'mapillary': Layout(
        metadata='mapillary',
        folder='{l}/images',
        image='{n}.jpg',
        label_map='{l}/labels/{n}.png',
        segment_map='{l}/panoptic/{n}.png',
        panoptic='annotations/panoptic_{l}.json',
    ),
}


def write_dataset(name: str, root: Path) -> None:
    """Writes both splits of ``name``, images of 96 x 72, unless ``root`` has its images."""
    layout = LAYOUTS[name]
    if not _at(root, 'val', layout.folder).exists():
        for split in SPLITS:
            _write_split(layout, root, split)


def classes_of(metadata: DatasetMetadata) -> list[int]:
    """The classes of a data set that the facade's have the places of."""
    stuff = [i for i in range(len(metadata.classes)) if i not in metadata.thing_ids]
    return [*metadata.thing_ids[:NUM_THINGS], *stuff[:NUM_STUFF]]


def _at(root: Path, split: str, pattern: str, name: str = '') -> Path:
    long = {'train': 'training', 'val': 'validation'}[split]
    path = root / pattern.format(s=split, l=long, n=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_split(layout: Layout, root: Path, split: str) -> None:
    at = partial(_at, root, split)
    metadata = load_metadata(layout.metadata)
    images, annotations, instances = [], [], []
    for index, annotation in enumerate(
        _read(f'annotations/panoptic_{split}.json')['annotations'][: SPLITS[split]]
    ):
        # Three parts, as cityscapesScripts has it.
        name = f'facade_{split}_{index:06d}'
        image_id, file = annotation['image_id'], annotation['file_name']
        image = layout.image.format(n=name)
        photo = Image.open((FACADE / f'img/{split}/{file}').with_suffix('.jpg'))
        photo.resize((WIDTH, HEIGHT)).save(at(f'{layout.folder}/{image}'))
        images.append({'id': image_id, 'file_name': image, 'height': HEIGHT, 'width': WIDTH})
        ids = _read_ids(FACADE / f'panoptic/{split}/{file}')
        segments = _segments(annotation, ids, metadata)
        _write_maps(layout, at, name, ids, segments, metadata)
        file_name = at(layout.segment_map, name).name
        annotations.append(
            {'image_id': image_id, 'file_name': file_name, 'segments_info': segments}
        )
        instances += _masks(image_id, ids, segments, metadata)
    _write_json(at(layout.panoptic), images, annotations, metadata)
    if layout.instances:
        things = load_metadata(f'{layout.metadata.removesuffix("_panoptic")}_instance')
        if layout.metadata == 'coco_panoptic':
            instances = _polygons(split, [image['id'] for image in images], things)
        _write_json(at(layout.instances), images, instances, things)


def _read(name: str) -> Json:
    return json.loads((FACADE / name).read_text())


def _read_ids(path: Path) -> np.ndarray:
    pixels = Image.open(path).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
    return np.asarray(pixels) @ np.array([1, 256, 256**2])


def _segments(annotation: Json, ids: np.ndarray, metadata: DatasetMetadata) -> list[Json]:
    """The segments that are left at this size; classes by their place in the data set."""
    classes = classes_of(metadata)
    segments = []
    for segment in annotation['segments_info']:
        rows, columns = np.nonzero(ids == segment['id'])
        if not len(rows):
            continue
        category = metadata.category_ids[classes[segment['category_id'] - 1]]
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        segments.append({**segment, 'category_id': category, 'bbox': box, 'area': len(rows)})
    return segments


def _write_maps(
    layout: Layout,
    at: At,
    name: str,
    ids: np.ndarray,
    segments: list[Json],
    metadata: DatasetMetadata,
) -> None:
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(at(layout.segment_map, name))
    label_map = np.full(ids.shape, 0 if layout.shift else metadata.ignore_index, np.uint8)
    instance_ids = np.zeros(ids.shape, np.uint16)
    for number, segment in enumerate(segments):
        category, mask = segment['category_id'], ids == segment['id']
        label = metadata.category_ids.index(category)
        label_map[mask] = label + layout.shift
        is_thing = label in metadata.thing_ids
        instance_ids[mask] = 1000 * category + number if is_thing else category
    Image.fromarray(label_map).save(at(layout.label_map, name))
    if layout.instance_ids:
        Image.fromarray(instance_ids).save(at(layout.instance_ids, name))


def _masks(
    image_id: int, ids: np.ndarray, segments: list[Json], metadata: DatasetMetadata
) -> list[Json]:
    """The things as instances: run lengths."""
    instances = []
    for segment in segments:
        if metadata.category_ids.index(segment['category_id']) in metadata.thing_ids:
            rle = coco_mask.encode(np.asfortranarray(ids == segment['id'], np.uint8))
            rle['counts'] = rle['counts'].decode()
            instances.append({**segment, 'image_id': image_id, 'segmentation': rle})
    return instances


def _polygons(split: str, image_ids: list[int], metadata: DatasetMetadata) -> list[Json]:
    """The facade's own instances, except those that cover no pixel at this size."""
    instances = []
    for annotation in _read(f'annotations/instances_{split}.json')['annotations']:
        polygons = [
            (np.reshape(polygon, (-1, 2)) * SCALE).ravel().tolist()
            for polygon in annotation['segmentation']
        ]
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))
        if annotation['image_id'] not in image_ids or not coco_mask.area(rle):
            continue
        changes = {
            'category_id': metadata.category_ids[annotation['category_id'] - 1],
            'bbox': coco_mask.toBbox(rle).tolist(),
            'area': int(coco_mask.area(rle)),
            'segmentation': polygons,
        }
        instances.append({**annotation, **changes})
    return instances


def _write_json(
    path: Path, images: list[Json], annotations: list[Json], metadata: DatasetMetadata
) -> None:
    named = zip(metadata.category_ids, metadata.classes, strict=True)
    categories = [
        {'id': category, 'name': name, 'isthing': int(index in metadata.thing_ids)}
        for index, (category, name) in enumerate(named)
    ]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    path.write_text(json.dumps(content))
