"""Data sets: ids of any kind, classes and things, the names of Cityscapes, and wrong files."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset
from PIL import Image
from pycocotools.coco import COCO

from mmseg_m2f.adapters.data import InstanceDataset, PanopticDataset, coco_classes
from mmseg_m2f.evaluation.panoptic_map import read_ids
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.metadata.colors import spread_colors
from mmseg_m2f.registry import DATASETS
from tests.adapters.data import scenes
from tests.adapters.data.scenes import DROPPED

TINY = Path(__file__).parents[3] / 'data/tiny'
PIPELINE = [{'type': 'LoadImageFromFile'}, {'type': 'mmseg_m2f.LoadSegments'}]
SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]
CROWD = {'size': list(scenes.SIZE), 'counts': [10, 20, 162]}


def tiny(name, kind, **settings):
    prefix = {'img': 'img/val'}
    if kind is PanopticDataset:
        prefix |= {'seg': 'panoptic/val', 'label_map': 'labelmap/val'}
    ann_file = f'annotations/{"panoptic" if kind is PanopticDataset else "instances"}_val.json'
    return kind(data_root=str(TINY / name), ann_file=ann_file, data_prefix=prefix, **settings)


def labels(dataset):
    return [dataset.get_cat_ids(index) for index in range(len(dataset))]


@pytest.fixture
def said(monkeypatch):
    """What the data sets write into the log."""
    lines = []
    monkeypatch.setattr(coco_classes, 'print_log', lambda text, **_: lines.append(text))
    coco_classes.log_once.cache_clear()
    return lines


@pytest.mark.parametrize('name', ['coco', 'facade'])
def test_masks_are_those_of_pycocotools(name):
    dataset = tiny(name, InstanceDataset, pipeline=PIPELINE)
    coco = COCO(str(TINY / name / 'annotations/instances_val.json'))
    label_of = {c: i for i, c in enumerate(dataset.metainfo['category_ids'])}
    num_crowds = num_instances = 0
    for record in dataset:
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=record['img_id']))
        num_crowds += sum(a['iscrowd'] for a in annotations)
        annotations = [a for a in annotations if not a['iscrowd']]
        segments = record['gt_segments']
        assert segments.labels.tolist() == [label_of[a['category_id']] for a in annotations]
        for mask, annotation in zip(segments.masks(), annotations, strict=True):
            assert (mask == coco.annToMask(annotation)).all()
        num_instances += len(annotations)
    assert num_instances > 50
    assert (num_crowds > 0) == (name == 'coco')


def test_classes_from_the_file_alone():
    dataset = tiny('facade', PanopticDataset)
    rows = json.loads((TINY / 'facade/classes.json').read_text())['classes']
    assert len(dataset) == 12
    assert dataset.metainfo == {
        'classes': tuple(row['name'] for row in rows),
        # The file has no colors.
        'palette': list(spread_colors(11)),
        'thing_ids': (0, 1, 2, 3, 4),
        'category_ids': tuple(row['id'] for row in rows),
        'metadata': None,
    }
    record = dataset[0]
    assert all(Path(record[f'{key}_path']).is_file() for key in ('img', 'seg_map', 'label_map'))
    assert (record['height'], record['width']) == (384, 384)
    assert set(record['segments_info'][0]) == {'id', 'label', 'is_thing', 'is_crowd', 'area'}


@pytest.mark.parametrize(
    ('kind', 'metadata'), [(PanopticDataset, 'coco_panoptic'), (InstanceDataset, 'coco_instance')]
)
def test_metadata_gives_the_same_classes_for_coco(kind, metadata):
    own, official = tiny('coco', kind), tiny('coco', kind, metadata=metadata)
    assert labels(own) == labels(official)
    assert own[0][kind.listed] == official[0][kind.listed]
    assert official.metainfo['metadata'] == metadata
    assert official.metainfo['classes'] == load_metadata(metadata).classes
    assert official.metainfo['thing_ids'] == own.metainfo['thing_ids'] == tuple(range(80))
    # It goes into checkpoints and to other processes.
    assert pickle.loads(pickle.dumps(official.metainfo)) == official.metainfo


def test_label_maps_have_the_same_classes():
    dataset = tiny('coco', PanopticDataset)
    for record in (dataset[i] for i in range(3)):
        ids = read_ids(record['seg_map_path'])
        expected = np.full(ids.shape, 255)
        # Crowds have their class in label maps.
        for segment in record['segments_info']:
            expected[ids == segment['id']] = segment['label']
        assert (np.asarray(Image.open(record['label_map_path'])) == expected).all()


@pytest.mark.parametrize('ids', [(1, 2, 3), (0, 1, 2), (7, 0, 3), (900, 20, 4)])
def test_any_category_ids_give_the_same_labels(tmp_path, ids):
    categories = [{**category, 'id': i} for category, i in zip(scenes.CATEGORIES, ids, strict=True)]
    # Images without segments or without things stay, and crowds are marked.
    images = [[(40, ids[2]), (5, ids[0], 1)], [(1, ids[1]), (2, ids[0])], [(1, ids[1])], []]
    dataset = PanopticDataset(**scenes.write_panoptic(tmp_path, images, categories))
    assert labels(dataset) == [[2, 0], [1, 0], [1], []]
    assert dataset.metainfo['classes'] == ('dog', 'sky', 'cat')
    assert dataset.metainfo['thing_ids'] == (0, 2)
    assert dataset.metainfo['category_ids'] == ids
    assert [s['is_thing'] for s in dataset[1]['segments_info']] == [False, True]
    assert [s['is_crowd'] for s in dataset[0]['segments_info']] == [False, True]


def test_classes_chosen_by_name(tmp_path, said):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1), (2, 2), (3, 3)]])
    dataset = PanopticDataset(**layout, metainfo={'classes': ('sky', 'dog')})
    assert labels(dataset) == [[1, 0]]
    assert [s['id'] for s in dataset[0]['segments_info']] == [1, 2]
    assert dataset.metainfo['thing_ids'] == (1,)
    assert dataset.metainfo['category_ids'] == (2, 1)
    assert dataset.metainfo['palette'] == [(1, 2, 3), (9, 8, 7)]
    assert "left out: ['cat']" in said[1]
    with pytest.raises(ValueError, match=r"pan\.json does not .* the names \['cow'\] .*'dog'"):
        PanopticDataset(**layout, metainfo={'classes': ('sky', 'cow')})
    with pytest.raises(ValueError, match="metadata='mapillary' and metainfo both name"):
        PanopticDataset(**layout, metadata='mapillary', metainfo={'classes': ('sky',)})


def test_all_classes_of_instances_are_things_and_can_be_chosen_by_name(tmp_path):
    layout = scenes.write_instances(tmp_path, [[(1, SQUARE, 0), (2, SQUARE, 0), (3, SQUARE, 0)]])
    assert InstanceDataset(**layout).metainfo['thing_ids'] == (0, 1, 2)
    assert labels(InstanceDataset(**layout, metainfo={'classes': ('cat', 'dog')})) == [[1, 0]]


def test_things_are_those_of_the_file_or_those_given(tmp_path):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1), (2, 2), (3, 3)]])
    known = {'classes': ('cat', 'sky', 'dog'), 'category_ids': (3, 2, 1)}
    for metainfo, expected in (
        (known, (0, 2)),
        ({**known, 'thing_ids': [1]}, (1,)),
        ({'thing_ids': [2, 1]}, (1, 2)),
        ({'thing_ids': []}, ()),
        ({'classes': ('sky', 'dog'), 'thing_ids': (np.int64(0),)}, (0,)),
    ):
        dataset = PanopticDataset(**layout, metainfo=metainfo)
        assert dataset.metainfo['thing_ids'] == expected
        of_segments = {s['label']: s['is_thing'] for s in dataset[0]['segments_info']}
        assert of_segments == {i: i in expected for i in range(len(of_segments))}
    for wrong in ([3], [0, 0], [True], ['dog'], [-1]):
        with pytest.raises(ValueError, match='thing_ids must be different class indices'):
            PanopticDataset(**layout, metainfo={'thing_ids': wrong})
    with pytest.raises(ValueError, match='3 classes and 2 category_ids'):
        PanopticDataset(**layout, metainfo={**known, 'category_ids': (3, 2)})


def test_label_maps_of_another_order_are_not_read(tmp_path, said):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1), (2, 2), (3, 3)]])
    layout['data_prefix'] |= {'label_map': 'labels'}
    for names, has in (
        (('dog', 'sky', 'cat'), True),
        (('cat', 'sky', 'dog'), False),
        (('dog', 'sky'), False),
    ):
        record = PanopticDataset(**layout, metainfo={'classes': names})[0]
        assert ('label_map_path' in record) == has
    assert len([text for text in said if 'not in the order of the label maps' in text]) == 1


def test_file_and_classes_are_logged_once(tmp_path, said):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)]])
    for _ in range(2):
        PanopticDataset(**layout)
    reading, classes = said
    assert reading == f'reading {tmp_path}/pan.json'
    assert '3 classes' in classes
    assert '2 things: 0 dog (1), 2 cat (3)' in classes
    assert '1 stuff: 1 sky (2)' in classes


def test_lazy_init_needs_no_file():
    settings = {'ann_file': 'no.json', 'data_prefix': {'img': 'a', 'seg': 'b'}, 'lazy_init': True}
    assert PanopticDataset(**settings).metainfo == {'metadata': None}
    metainfo = PanopticDataset(**settings, metadata='cityscapes').metainfo
    assert metainfo['classes'] == load_metadata('cityscapes').classes
    assert metainfo['thing_ids'] == tuple(range(11, 19))


def test_what_mmengine_does_with_data_sets(tmp_path):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)], [(1, 2), (2, 3)], [(4, 1)]])
    assert labels(PanopticDataset(**layout, indices=2)) == [[0], [1, 2]]
    assert len(ClassBalancedDataset(PanopticDataset(**layout), 0.9)) >= 3


def test_a_test_set_without_annotations(tmp_path):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)]])
    scenes.change_json(tmp_path / 'pan.json', 'annotations', DROPPED)
    record = PanopticDataset(**layout, test_mode=True)[0]
    assert Path(record['img_path']).is_file()
    assert 'segments_info' not in record
    with pytest.raises(ValueError, match=r'pan\.json has no annotation of 0\.jpg \(image 0\)'):
        PanopticDataset(**layout)


def test_images_without_instances_stay_unless_filtered(tmp_path):
    images = [[(1, SQUARE, 0)], [], [(1, CROWD, 1)], [(3, CROWD, 1), (2, SQUARE, 0)]]
    layout = scenes.write_instances(tmp_path, images)
    filtered = InstanceDataset(**layout, filter_empty=True)
    assert labels(filtered) == [[0], [2, 1]]
    assert filtered.get_data_info(1)['img_id'] == 3
    assert len(InstanceDataset(**layout, filter_empty=True, test_mode=True)) == 4
    dataset = InstanceDataset(**layout, pipeline=PIPELINE)
    assert [dataset[i]['gt_segments'].labels.tolist() for i in range(4)] == [[0], [], [], [1]]
    layout = scenes.write_instances(tmp_path, images[1:3])
    with pytest.raises(ValueError, match=r'\.json: none of its 2 images .* filter_empty=False'):
        InstanceDataset(**layout, filter_empty=True)


def test_annotations_without_area_are_left_out(tmp_path, said):
    empty = [[], [[1, 1, 2, 2]], None, [[1, 1, 5, 1, 5, 5, 1]], {'size': [12, 16]}]
    annotations = [(1, shape, 0) for shape in empty] + [(3, [[1, 1, 2, 2], *SQUARE], 0)]
    layout = scenes.write_instances(tmp_path, [annotations])
    (left,) = InstanceDataset(**layout)[0]['instances']
    expected = {'label': 2, 'segmentation': SQUARE, 'is_crowd': False, 'bbox': [1, 1, 4, 4]}
    assert left == expected
    assert said[-1] == f'{tmp_path}/ins.json: 5 annotations have no mask and are left out'


SEGMENT = 'annotations.0.segments_info.0'


@pytest.mark.parametrize(
    ('keys', 'value', 'message'),
    [
        (f'{SEGMENT}.category_id', 77, r': an annotation of 0\.jpg has .* list: \[1, 2, 3\]'),
        ('annotations.1', DROPPED, r'pan\.json has no annotation of 1\.jpg'),
        ('annotations.1.image_id', 0, 'lists the annotation of image 0 twice'),
        ('categories.1.id', 1, 'lists the category 1 twice'),
        ('images.1.id', 0, 'lists the image 0 twice'),
        ('annotations.1.segments_info.0.id', 2, r'pan\.json: 1\.png lists the segment 2 twice'),
        ('categories.1.isthing', DROPPED, r"isthing must be .* not in \['sky'\]"),
        ('categories', DROPPED, r"it has no list of \['categories'\]"),
        ('annotations.0.segmentation', [], 'in the instance format: use mmseg_m2f.InstanceDataset'),
        ('annotations.0.segments_info', DROPPED, r"lacks \['segments_info'\]"),
        ('annotations.0.segments_info', None, r'pan\.json: 0\.png .*segments_info'),
        ('annotations', None, r"pan\.json .*no list of \['annotations'\]"),
        ('images.1.height', DROPPED, r'1\.jpg.*height'),
        *((f'{SEGMENT}.id', i, 'from 1 to 16777215') for i in (0, -1, 256**3, '1', 1.0, True)),
        *(('categories.0.id', i, r"pan\.json: the id of .*'dog'") for i in ('1', 1.5, None, [1])),
        *(
            ('categories.0.color', color, r"pan\.json: the color of the category 'dog'")
            for color in (None, '#ff0000', [1, 2], [1, 2, 'x'], [0, 0, 256])
        ),
    ],
)
def test_a_wrong_panoptic_file_is_named(tmp_path, keys, value, message):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)], [(1, 2), (2, 3)]])
    scenes.change_json(tmp_path / 'pan.json', keys, value)
    with pytest.raises(ValueError, match=message):
        PanopticDataset(**layout)


@pytest.mark.parametrize(
    ('keys', 'value', 'message'),
    [
        ('annotations.0.category_id', 9, r'ins\.json: an annotation of 0\.jpg .* \[1, 2, 3\]'),
        ('annotations.0.category_id', [1], r'category_id \[1\]'),
        ('annotations.0.category_id', DROPPED, r"lacks \['category_id'\]"),
        ('annotations.0.image_id', 9, 'is of image 9, which is not listed'),
        ('annotations.0.segmentation', SQUARE[0], r'ins\.json: the segmentation .* of polygons'),
        ('annotations', None, r"ins\.json .* no list of \['annotations'\]"),
    ],
)
def test_a_wrong_instance_file_is_named(tmp_path, keys, value, message):
    layout = scenes.write_instances(tmp_path, [[(1, SQUARE, 0)]])
    scenes.change_json(tmp_path / 'ins.json', keys, value)
    with pytest.raises(ValueError, match=message):
        InstanceDataset(**layout)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'ann_file': 'other.json'}, FileNotFoundError, r'no annotation file .*other\.json; check'),
        ({'ann_file': 'img/0.jpg'}, ValueError, r'0\.jpg is no JSON file'),
        ({'metadata': 'cityscapes'}, ValueError, r'pan\.json does not .* lacks the ids \[7, 8'),
        ({'metadata': 'cityscape'}, ValueError, "metadata='cityscape' is not known"),
        ({'data_prefix': {'img_path': 'img'}}, ValueError, 'data_prefix needs img and knows'),
        ({'data_prefix': {'img': 'img'}}, ValueError, 'data_prefix needs the key seg'),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, error, message):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)]])
    with pytest.raises(error, match=message):
        PanopticDataset(**{**layout, **settings})


# createPanopticImgs.py makes the image's name from the annotation's.
@pytest.mark.parametrize('name', ['aachen/aachen_0_leftImg8bit', 'aachen_0_gtFine_leftImg8bit'])
def test_names_of_cityscapes_and_categories_in_another_order(tmp_path, name):
    known = load_metadata('cityscapes')
    columns = zip(known.category_ids, known.classes, strict=True)
    categories = [{'id': i, 'name': c, 'isthing': 1} for i, c in columns]
    segments = [(26_001, known.category_ids[-1]), (5, known.category_ids[0])]
    entries = [scenes.panoptic_entry('a', f'{name}.png', 'a_gtFine_panoptic.png', segments)]
    scenes.write_json(tmp_path / 'a.json', entries, categories[::-1])
    scenes.write_photo(tmp_path / 'img/aachen/aachen_0_leftImg8bit.png')
    scenes.write_png(tmp_path / 'pan/a_gtFine_panoptic.png', scenes.stripes([26_001, 5]))
    settings = {
        'type': 'mmseg_m2f.PanopticDataset',
        'data_root': str(tmp_path),
        'ann_file': 'a.json',
        'data_prefix': {'img': 'img', 'seg': 'pan', 'label_map': 'labels'},
        'metadata': 'cityscapes',
        'pipeline': PIPELINE,
        'label_map_suffix': '_gtFine_labelTrainIds.png',
    }
    [record] = DATASETS.build(settings)
    label_map = tmp_path / 'labels/aachen/aachen_0_gtFine_labelTrainIds.png'
    assert record['label_map_path'] == str(label_map)
    segments = record['gt_segments']
    assert segments.labels.tolist() == [len(categories) - 1, 0]
    # The metadata says what is a thing.
    assert segments.is_thing.tolist() == [True, False]
    assert (segments.index_map() == scenes.stripes([0, 1])).all()


def semantic(**settings):
    pytest.importorskip('mmseg')
    return DATASETS.build({'type': 'mmseg_m2f.SemanticDataset', **settings})


def test_mapillary_has_65_classes_and_the_unlabeled_is_ignored(tmp_path):
    labels = np.array([[0, 64], [65, 13]], np.uint8)
    scenes.write_photo(tmp_path / 'images/a.jpg', (2, 2))
    (tmp_path / 'labels').mkdir()
    Image.fromarray(labels).save(tmp_path / 'labels/a.png')
    dataset = semantic(
        metadata='mapillary',
        data_root=str(tmp_path),
        data_prefix={'img_path': 'images', 'seg_map_path': 'labels'},
        pipeline=[{'type': 'LoadImageFromFile'}, {'type': 'mmseg.LoadAnnotations'}],
    )
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 65
    assert dataset.metainfo['classes'][64] == 'Ego Vehicle'
    assert dataset.ignore_index == 65
    # The ignored label stays what it is in the files: heads and metrics get ignore_index=65.
    assert (dataset[0]['gt_seg_map'] == labels).all()


def test_a_semantic_dataset_without_mmseg_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmseg.datasets', None)
    with pytest.raises(ImportError, match=r'SemanticDataset needs .* pip install onedl-mmseg'):
        DATASETS.build({'type': 'mmseg_m2f.SemanticDataset', 'metadata': 'ade20k'})


def test_settings_of_a_semantic_dataset_go_before_the_metadata():
    settings = {'reduce_zero_label': True, 'ignore_index': 254, 'lazy_init': True}
    dataset = semantic(metadata='ade20k', **settings)
    assert (dataset.ignore_index, dataset.reduce_zero_label) == (254, True)
    assert dataset.metainfo['classes'][0] == 'wall'
