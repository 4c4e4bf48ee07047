"""Counts, ids and things; names and colors against the lists of other packages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmseg_m2f.metadata import NAMES, load_metadata

ROOT = Path(__file__).parents[2]


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
    num_things, num_stuff, ignore_index = COUNTS[name]
    metadata = load_metadata(name)
    num_classes = num_things + num_stuff
    assert metadata.name == name
    assert len(metadata.thing_ids) == num_things
    assert len(metadata.classes) == len(metadata.palette) == num_classes
    assert len(set(metadata.classes)) == len(set(metadata.category_ids)) == num_classes
    assert list(metadata.thing_ids) == sorted(set(metadata.thing_ids))
    assert metadata.ignore_index == ignore_index
    assert all(len(c) == 3 and 0 <= min(c) <= max(c) <= 255 for c in metadata.palette)
    assert all(name == name.strip() for name in metadata.classes)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"metadata='coco' is not known; known are ade20k, "):
        load_metadata('coco')


def test_category_ids_and_things():
    assert load_metadata('ade20k').category_ids == tuple(range(150))
    assert load_metadata('ade20k_instance').category_ids == load_metadata('ade20k').thing_ids
    assert load_metadata('ade20k').thing_ids[:5] == (7, 8, 10, 12, 14)
    assert load_metadata('mapillary').category_ids == tuple(range(1, 66))
    coco = load_metadata('coco_panoptic')
    assert coco.thing_ids == tuple(range(80))
    assert coco.category_ids[79:83] == (90, 92, 93, 95)
    assert load_metadata('coco_instance').category_ids == coco.category_ids[:80]
    ranges = [(0, 2), (8, 9), (19, 24), (32, 43), (44, 58), (59, 63)]
    assert load_metadata('mapillary').thing_ids == tuple(i for r in ranges for i in range(*r))


def test_coco_is_what_comes_with_the_sources():
    rows = json.loads((ROOT / 'data/tiny/coco/classes.json').read_text())['classes']
    metadata = load_metadata('coco_panoptic')
    assert metadata.classes == tuple(row['name'] for row in rows)
    assert metadata.category_ids == tuple(row['id'] for row in rows)
    assert metadata.thing_ids == tuple(row['index'] for row in rows if row['isthing'])


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
    assert classes == [*metadata.classes, 'Unlabeled'][: len(classes)]
    assert name == 'mapillary' or len(classes) == len(metadata.classes)
    if name != 'cityscapes_instance':  # mmdet gives it COCO's colors
        assert metadata.palette == tuple(map(tuple, theirs['palette'][: len(metadata.classes)]))


def test_cityscapes_is_that_of_its_scripts():
    labels = pytest.importorskip('cityscapesscripts.helpers.labels').labels
    trained = sorted((x for x in labels if 0 <= x.trainId < 255), key=lambda x: x.trainId)
    metadata = load_metadata('cityscapes')
    assert metadata.classes == tuple(label.name for label in trained)
    assert metadata.category_ids == tuple(label.id for label in trained)
    assert metadata.palette == tuple(label.color for label in trained)
    assert metadata.thing_ids == tuple(label.trainId for label in trained if label.hasInstances)


def test_reading_it_loads_neither_torch_nor_numpy():
    code = (
        'import sys\n'
        'from mmseg_m2f.metadata import NAMES, load_metadata\n'
        'for name in NAMES:\n'
        '    load_metadata(name)\n'
        "assert not {'torch', 'numpy', 'mmengine'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
