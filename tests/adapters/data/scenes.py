"""Small data sets and records in COCO's formats."""

import functools
import json
import operator

import numpy as np
from PIL import Image

from mmseg_m2f.adapters.data import LoadSegments, SegmentMap

SIZE = 12, 16
CATEGORIES = [
    {'id': 1, 'name': 'dog', 'isthing': 1, 'color': [9, 8, 7]},
    {'id': 2, 'name': 'sky', 'isthing': 0, 'color': [1, 2, 3]},
    {'id': 3, 'name': 'cat', 'isthing': 1, 'color': [4, 5, 6]},
]


def stripes(ids, size=SIZE):
    """An id map: upright stripes of equal width from left to right."""
    row = np.array(ids, np.int32)[np.arange(size[1]) * len(ids) // size[1]]
    return row[None].repeat(size[0], axis=0)


def write_photo(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_png(path, id_map):
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([id_map >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
    Image.fromarray(colors).save(path)


def panoptic_entry(image_id, file_name, png_name, segments):
    """Image and annotation; segments are (segment id, category id), or with iscrowd third."""
    keys = 'id', 'category_id', 'iscrowd'
    infos = [{'area': 10, **dict(zip(keys, (*s, 0), strict=False))} for s in segments]
    image = {'id': image_id, 'file_name': file_name, 'height': SIZE[0], 'width': SIZE[1]}
    return image, [{'image_id': image_id, 'file_name': png_name, 'segments_info': infos}]


def write_json(path, entries, categories=CATEGORIES):
    """Write a file of (image, its annotations)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        'images': [image for image, _ in entries],
        'annotations': [annotation for _, given in entries for annotation in given],
        'categories': categories,
    }
    path.write_text(json.dumps(content))


def write_panoptic(root, images, categories=CATEGORIES):
    """Write ``pan.json``, ``img`` and ``pan``; images are lists of segments as above."""
    entries = []
    for number, segments in enumerate(images):
        write_photo(root / f'img/{number}.jpg')
        write_png(root / f'pan/{number}.png', stripes([segment[0] for segment in segments] or [0]))
        entries.append(panoptic_entry(number, f'{number}.jpg', f'{number}.png', segments))
    write_json(root / 'pan.json', entries, categories)
    prefix = {'img': 'img', 'seg': 'pan'}
    return {'data_root': str(root), 'ann_file': 'pan.json', 'data_prefix': prefix}


def write_instances(root, images):
    """Write ``ins.json``, ``img``; images are lists of (category id, segmentation, iscrowd)."""
    entries = []
    for number, instances in enumerate(images):
        write_photo(root / f'img/{number}.jpg')
        image, _ = panoptic_entry(number, f'{number}.jpg', '', [])
        keys = 'category_id', 'segmentation', 'iscrowd'
        annotations = [dict(zip(keys, instance, strict=True)) for instance in instances]
        shared = {'image_id': number, 'bbox': [1, 1, 4, 4]}
        entries.append((image, [annotation | shared for annotation in annotations]))
    write_json(root / 'ins.json', entries)
    return {'data_root': str(root), 'ann_file': 'ins.json', 'data_prefix': {'img': 'img'}}


DROPPED = object()


def change_json(path, keys, value):
    """Set the entry ``keys``, such as ``images.0.id``, to a value, or drop it."""
    content = json.loads(path.read_text())
    *outer, last = (int(key) if key.isdigit() else key for key in keys.split('.'))
    entry = functools.reduce(operator.getitem, outer, content)
    if value is DROPPED:
        del entry[last]
    else:
        entry[last] = value
    path.write_text(json.dumps(content))


def segment_map(ids, segment_ids=None):
    """Make a map; all ids are segments in random order, unless ``segment_ids`` are given."""
    if segment_ids is None:
        segment_ids = np.random.default_rng(1).permutation(np.unique(ids))
    return SegmentMap(
        ids=ids,
        segment_ids=np.asarray(segment_ids, np.int32),
        labels=np.arange(len(segment_ids)),
        is_thing=np.zeros(len(segment_ids), bool),
        rows=np.arange(ids.shape[0]),
        columns=np.arange(ids.shape[1]),
    )


def panoptic_record(folder, segments, size=SIZE):
    """A record of ``a.png``; segments are (id, label, is_thing), or with is_crowd fourth."""
    keys = 'id', 'label', 'is_thing', 'is_crowd'
    return {
        'img': np.zeros((*size, 3), np.uint8),
        'img_path': 'a.jpg',
        'seg_map_path': str(folder / 'a.png'),
        'segments_info': [dict(zip(keys, (*s, False), strict=False)) for s in segments],
    }


def instance_record(shapes, img=None):
    """A record with ``gt_segments``: a segmentation or a box (x1, y1, x2, y2) each."""
    img = np.zeros((6, 8, 3), np.uint8) if img is None else img
    instances = []
    for label, shape in enumerate(shapes):
        if isinstance(shape, tuple):
            x1, y1, x2, y2 = shape
            shape = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        instances.append({'label': label, 'is_crowd': False, 'segmentation': shape})
    results = {'img': img, 'img_path': 'a.jpg', 'instances': instances}
    results['height'], results['width'] = img.shape[:2]
    return LoadSegments().transform(results)
