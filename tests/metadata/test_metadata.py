import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmseg_m2f.metadata import NAMES, load_metadata
from mmseg_m2f.metadata.colors import spread_colors, voc_colors

# Name: number of things, number of stuff classes, ignored label.
COUNTS = {
    'ade20k': (100, 50, 255),
    'ade20k_instance': (100, 0, 255),
    'cityscapes': (8, 11, 255),
    'cityscapes_instance': (8, 0, 255),
    'coco_instance': (80, 0, 255),
    'coco_panoptic': (80, 53, 255),
    'mapillary': (37, 28, 65),
}


@pytest.mark.parametrize('name', NAMES)
def test_counts(name):
    metadata = load_metadata(name)
    num_things, num_classes = len(metadata.thing_ids), len(metadata.classes)
    assert (num_things, num_classes - num_things, metadata.ignore_index) == COUNTS[name]
    assert len(set(metadata.classes)) == len(set(metadata.category_ids)) == num_classes
    assert list(metadata.thing_ids) == sorted(set(metadata.thing_ids))
    assert np.array(metadata.palette, np.uint8).shape == (num_classes, 3)


def test_category_ids_and_things():
    assert load_metadata('ade20k').category_ids == tuple(range(150))
    assert load_metadata('ade20k_instance').category_ids == load_metadata('ade20k').thing_ids
    assert load_metadata('ade20k').thing_ids[:5] == (7, 8, 10, 12, 14)
    assert load_metadata('mapillary').category_ids == tuple(range(1, 66))
    ranges = [(0, 2), (8, 9), (19, 24), (32, 43), (44, 58), (59, 63)]
    assert load_metadata('mapillary').thing_ids == tuple(i for r in ranges for i in range(*r))
    coco = load_metadata('coco_panoptic')
    assert load_metadata('coco_instance').category_ids == coco.category_ids[:80]
    file = Path(__file__).parents[2] / 'data/tiny/coco/classes.json'  # from the official sources
    rows = json.loads(file.read_text())['classes']
    found = zip(coco.category_ids, coco.classes, strict=True)
    assert list(found) == [(row['id'], row['name']) for row in rows]
    assert coco.thing_ids == tuple(row['index'] for row in rows if row['isthing'])
    with pytest.raises(ValueError, match=r"metadata='coco' is not known; known are ade20k, "):
        load_metadata('coco')


@pytest.mark.parametrize(
    ('name', 'framework', 'dataset'),
    [
        ('ade20k_instance', 'mmdet', 'ADE20KInstanceDataset'),
        ('cityscapes_instance', 'mmdet', 'CityscapesDataset'),
        ('coco_instance', 'mmdet', 'CocoDataset'),
        ('coco_panoptic', 'mmdet', 'CocoPanopticDataset'),
        ('ade20k', 'mmseg', 'ADE20KDataset'),
        ('cityscapes', 'mmseg', 'CityscapesDataset'),
        ('mapillary', 'mmseg', 'MapillaryDataset_v1'),
    ],
)
def test_names_and_colors_are_those_of_the_frameworks(name, framework, dataset):
    theirs = getattr(pytest.importorskip(f'{framework}.datasets'), dataset).METAINFO
    metadata = load_metadata(name)
    classes = [c.strip() for c in theirs['classes']]
    # mmseg counts Mapillary's "Unlabeled" as a class, we do not.
    assert classes == [*metadata.classes, *['Unlabeled'] * (name == 'mapillary')]
    if name != 'cityscapes_instance':  # mmdet gives it COCO's colors
        assert metadata.palette == tuple(map(tuple, theirs['palette'][: len(metadata.classes)]))


def test_cityscapes_is_that_of_its_scripts():
    labels = pytest.importorskip('cityscapesscripts.helpers.labels').labels
    trained = sorted((x for x in labels if 0 <= x.trainId < 255), key=lambda x: x.trainId)
    metadata = load_metadata('cityscapes')
    found = zip(metadata.classes, metadata.category_ids, metadata.palette, strict=True)
    assert list(found) == [(label.name, label.id, label.color) for label in trained]
    assert metadata.thing_ids == tuple(label.trainId for label in trained if label.hasInstances)


def test_reading_it_loads_neither_torch_nor_numpy():
    code = (
        'import sys; from mmseg_m2f.metadata import *; [load_metadata(name) for name in NAMES]; '
        "assert not {'torch', 'numpy', 'mmengine'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('number', [1, 2, 19, 133])
def test_spread_colors_differ_most_between_neighbors(number):
    colors = spread_colors(number)
    assert len(set(colors)) == number
    assert (np.abs(np.diff(np.array(colors), axis=0)).sum(1) > 60).all()


def test_voc_colors_by_hand_and_all_different():
    assert voc_colors(4) == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert len({tuple(color) for color in voc_colors(1000)}) == 1000
