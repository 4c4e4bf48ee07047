"""Small data sets and records in COCO's formats."""

import json

import numpy as np
from PIL import Image

from mmseg_m2f.adapters.data import LoadSegments

SIZE = 12, 16
CATEGORIES = [
    {'id': 1, 'name': 'dog', 'isthing': 1, 'color': [9, 8, 7]},
    {'id': 2, 'name': 'sky', 'isthing': 0, 'color': [1, 2, 3]},
    {'id': 3, 'name': 'cat', 'isthing': 1, 'color': [4, 5, 6]},
]


def stripes(ids, size=SIZE):
    """An id map: upright stripes of equal width from left to right."""
    bounds = np.linspace(0, size[1], len(ids) + 1).astype(int)
    id_map = np.zeros(size, np.int32)
    for value, start, stop in zip(ids, bounds[:-1], bounds[1:], strict=True):
        id_map[:, start:stop] = value
    return id_map


def write_photo(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_png(path, id_map):
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([id_map >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
    Image.fromarray(colors).save(path)


def panoptic_entry(image_id, file_name, png_name, segments, size=SIZE):
    """Image and annotation; ``segments`` are (segment id, category id) or with iscrowd third."""
    infos = [
        {'id': s[0], 'category_id': s[1], 'iscrowd': s[2] if len(s) > 2 else 0, 'area': 10}
        for s in segments
    ]
    image = {'id': image_id, 'file_name': file_name, 'height': size[0], 'width': size[1]}
    return image, {'image_id': image_id, 'file_name': png_name, 'segments_info': infos}


def write_json(path, entries, categories=CATEGORIES):
    """``entries`` are (image, annotation or list of annotations)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = []
    for _, given in entries:
        annotations += given if isinstance(given, list) else [given]
    content = {
        'images': [image for image, _ in entries],
        'annotations': annotations,
        'categories': categories,
    }
    path.write_text(json.dumps(content))


def write_panoptic(root, images, categories=CATEGORIES):
    """``pan.json``, ``img`` and ``pan``; ``images`` are lists of segments as above."""
    entries = []
    for number, segments in enumerate(images):
        write_photo(root / f'img/{number}.jpg')
        write_png(root / f'pan/{number}.png', stripes([segment[0] for segment in segments] or [0]))
        entries.append(panoptic_entry(number, f'{number}.jpg', f'{number}.png', segments))
    write_json(root / 'pan.json', entries, categories)
    return {
        'data_root': str(root),
        'ann_file': 'pan.json',
        'data_prefix': {'img': 'img', 'seg': 'pan'},
    }


def instance_record(boxes, img=None):
    """A record with ``gt_segments``: box ``x1 y1 x2 y2`` number i is an instance of class i."""
    img = np.zeros((6, 8, 3), np.uint8) if img is None else img
    instances = [
        {'label': label, 'is_crowd': False, 'segmentation': [[x1, y1, x2, y1, x2, y2, x1, y2]]}
        for label, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    results = {'img': img, 'img_path': 'a.jpg', 'instances': instances}
    results['height'], results['width'] = img.shape[:2]
    return LoadSegments().transform(results)


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
