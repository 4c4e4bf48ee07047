"""Category ids of any kind, the published layouts, and what can be wrong with a file."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset
from PIL import Image

from mmseg_m2f.adapters.data import PanopticDataset, coco_classes
from mmseg_m2f.evaluation.panoptic_map import read_ids
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.metadata.colors import spread_colors
from mmseg_m2f.registry import DATASETS
from tests.adapters.data import scenes

TINY = Path(__file__).parents[3] / 'data/tiny'


def tiny(name, split='val', **settings):
    return PanopticDataset(
        data_root=str(TINY / name),
        ann_file=f'annotations/panoptic_{split}.json',
        data_prefix={
            'img': f'img/{split}',
            'seg': f'panoptic/{split}',
            'label_map': f'labelmap/{split}',
        },
        **settings,
    )


def labels(dataset):
    return [[s['label'] for s in dataset[i]['segments_info']] for i in range(len(dataset))]


def test_classes_from_the_file_alone():
    dataset = tiny('facade')
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
    assert Path(record['img_path']).is_file()
    assert Path(record['seg_map_path']).is_file()
    assert Path(record['label_map_path']).is_file()
    assert (record['height'], record['width']) == (384, 384)
    assert set(record['segments_info'][0]) == {'id', 'label', 'is_thing', 'is_crowd', 'area'}


def test_metadata_gives_the_same_classes_for_coco():
    own, official = tiny('coco'), tiny('coco', metadata='coco_panoptic')
    assert labels(own) == labels(official)
    assert official.metainfo['metadata'] == 'coco_panoptic'
    assert official.metainfo['thing_ids'] == own.metainfo['thing_ids'] == tuple(range(80))
    # It goes into checkpoints and to other processes.
    assert pickle.loads(pickle.dumps(official.metainfo)) == official.metainfo


def test_label_maps_have_the_same_classes():
    for record in (tiny('coco')[i] for i in range(3)):
        ids = read_ids(record['seg_map_path'])
        expected = np.full(ids.shape, 255)
        for segment in record['segments_info']:
            expected[ids == segment['id']] = segment['label']
        with Image.open(record['label_map_path']) as file:
            label_map = np.asarray(file)
        # Crowds have their class in label maps.
        assert (label_map == expected).all()


@pytest.mark.parametrize('ids', [(1, 2, 3), (0, 1, 2), (7, 0, 3), (900, 20, 4)])
def test_any_category_ids_give_the_same_labels(tmp_path, ids):
    categories = [{**category, 'id': i} for category, i in zip(scenes.CATEGORIES, ids, strict=True)]
    segments = [[(40, ids[2]), (5, ids[0])], [(1, ids[1]), (2, ids[0]), (3, ids[0])]]
    dataset = PanopticDataset(**scenes.write_panoptic(tmp_path, segments, categories))
    assert labels(dataset) == [[2, 0], [1, 0, 0]]
    assert dataset.metainfo['classes'] == ('dog', 'sky', 'cat')
    assert dataset.metainfo['thing_ids'] == (0, 2)
    assert dataset.metainfo['category_ids'] == ids
    assert [s['is_thing'] for s in dataset[1]['segments_info']] == [False, True, True]


def test_crowds_are_marked_and_images_without_things_stay(tmp_path):
    segments = [[(1, 2)], [], [(1, 1, 1), (2, 3, 0)]]
    dataset = PanopticDataset(**scenes.write_panoptic(tmp_path, segments))
    assert labels(dataset) == [[1], [], [0, 2]]
    assert [s['is_crowd'] for s in dataset[2]['segments_info']] == [True, False]


def test_classes_chosen_by_name(tmp_path):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1), (2, 2), (3, 3)]])
    dataset = PanopticDataset(**layout, metainfo={'classes': ('sky', 'dog')})
    assert labels(dataset) == [[1, 0]]
    assert [s['id'] for s in dataset[0]['segments_info']] == [1, 2]
    assert dataset.metainfo['thing_ids'] == (1,)
    assert dataset.metainfo['category_ids'] == (2, 1)
    assert dataset.metainfo['palette'] == [(1, 2, 3), (9, 8, 7)]
    with pytest.raises(ValueError, match=r"pan\.json has no categories \['cow'\]; it has \['dog'"):
        PanopticDataset(**layout, metainfo={'classes': ('sky', 'cow')})
    with pytest.raises(ValueError, match="metadata='mapillary' and metainfo both name"):
        PanopticDataset(**layout, metadata='mapillary', metainfo={'classes': ('sky',)})


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
    with pytest.raises(ValueError, match='2 classes and 3 category_ids'):
        PanopticDataset(**layout, metainfo={**known, 'classes': ('cat', 'sky')})


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(coco_classes, 'print_log', lambda text, **_: lines.append(text))
    coco_classes.log_once.cache_clear()
    return lines


def test_label_maps_of_another_order_are_not_read(tmp_path, said):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1), (2, 2), (3, 3)]])
    layout['data_prefix'] = {**layout['data_prefix'], 'label_map': 'labels'}
    for names, has in (
        (('dog', 'sky', 'cat'), True),
        (('cat', 'sky', 'dog'), False),
        (('dog', 'sky'), False),
    ):
        record = PanopticDataset(**layout, metainfo={'classes': names})[0]
        assert ('label_map_path' in record) == has
    assert len([text for text in said if 'not in the order of the label maps' in text]) == 1


def test_a_big_file_is_announced_and_the_classes_are_printed_once(tmp_path, said, monkeypatch):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)]])
    PanopticDataset(**layout)
    monkeypatch.setattr(coco_classes, 'BIG_FILE', 10)
    PanopticDataset(**layout)
    classes, reading = said
    assert '3 classes' in classes
    assert '2 things: 0 dog (1), 2 cat (3)' in classes
    assert '1 stuff: 1 sky (2)' in classes
    assert reading.startswith(f'reading {tmp_path}/pan.json')


def test_lazy_init_needs_no_file():
    settings = {'ann_file': 'no.json', 'data_prefix': {'img': 'a', 'seg': 'b'}, 'lazy_init': True}
    assert PanopticDataset(**settings).metainfo == {'metadata': None}
    metainfo = PanopticDataset(**settings, metadata='cityscapes').metainfo
    assert metainfo['classes'] == load_metadata('cityscapes').classes
    assert metainfo['thing_ids'] == tuple(range(11, 19))
    given = PanopticDataset(**settings, metainfo={'classes': ('a', 'b')}).metainfo
    assert given == {'classes': ('a', 'b'), 'metadata': None}


def test_what_mmengine_does_with_data_sets(tmp_path):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)], [(1, 2), (2, 3)], [(4, 1)]])
    assert labels(PanopticDataset(**layout, indices=2)) == [[0], [1, 2]]
    dataset = PanopticDataset(**layout)
    assert dataset.get_cat_ids(1) == [1, 2]
    assert len(ClassBalancedDataset(dataset, 0.9)) >= 3
    absolute = {**layout, 'data_root': None, 'ann_file': f'{tmp_path}/pan.json'}
    absolute['data_prefix'] = {'img': f'{tmp_path}/img', 'seg': f'{tmp_path}/pan'}
    assert PanopticDataset(**absolute)[0] == dataset[0]


def test_a_test_set_without_annotations(tmp_path):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)]])
    scenes.change_json(tmp_path / 'pan.json', lambda content: content.pop('annotations'))
    record = PanopticDataset(**layout, test_mode=True)[0]
    assert Path(record['img_path']).is_file()
    assert 'segments_info' not in record
    with pytest.raises(ValueError, match=r'pan\.json has no annotation of 0\.jpg \(image 0\)'):
        PanopticDataset(**layout)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c['annotations'][1]['segments_info'][0].update(category_id=77),
            r'pan\.json: an annotation of 1\.jpg has category_id 77, .* do not list: \[1, 2, 3\]',
        ),
        (lambda c: c['annotations'].pop(1), r'pan\.json has no annotation of 1\.jpg'),
        (lambda c: c['annotations'].append(c['annotations'][0]), 'lists the annotation of image 0'),
        (lambda c: c['categories'].append(c['categories'][0]), 'lists the category 1 twice'),
        (lambda c: c['images'].append(c['images'][0]), 'lists the image 0 twice'),
        (
            lambda c: c['annotations'][1]['segments_info'][0].update(id=2),
            r'pan\.json: 1\.png lists the segment 2 twice',
        ),
        (lambda c: c['categories'][1].pop('isthing'), r"isthing must be .* not in \['sky'\]"),
        (lambda c: c.pop('categories'), r"it has no list of \['categories'\]"),
        (lambda c: c['annotations'][0].update(segmentation=[]), 'which mmseg_m2f.InstanceDataset'),
        (lambda c: c['annotations'][0].pop('segments_info'), r"lacks \['segments_info'\]"),
        (
            lambda c: c['annotations'][0].update(segments_info=None),
            r'pan\.json: 0\.png .*segments_i',
        ),
        (lambda c: c.update(annotations=None), r"pan\.json .*no list of \['annotations'\]"),
        *(
            (
                lambda c, i=i: c['annotations'][0]['segments_info'][0].update(id=i),
                r'pan\.json: 0\.png: segment ids must be whole numbers from 1 to 16777215',
            )
            for i in (0, -1, 256**3, '1', 1.0, True, None)
        ),
        *(
            (lambda c, i=i: c['categories'][0].update(id=i), r"pan\.json: the id of .*'dog'")
            for i in ('1', 1.5, None, [1])
        ),
        *(
            (
                lambda c, color=color: c['categories'][0].update(color=color),
                r"pan\.json: the color of the category 'dog'",
            )
            for color in (None, '#ff0000', [1, 2], [1, 2, 'x'], [0, 0, 256])
        ),
        (lambda c: c['images'][1].pop('height'), r'1\.jpg.*height'),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, message):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)], [(1, 2), (2, 3)]])
    scenes.change_json(tmp_path / 'pan.json', change)
    with pytest.raises(ValueError, match=message):
        PanopticDataset(**layout)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'ann_file': 'other.json'}, FileNotFoundError, r'no annotation file .*other\.json'),
        ({'ann_file': 'img/0.jpg'}, ValueError, r'0\.jpg is no JSON file'),
        ({'metadata': 'cityscapes'}, ValueError, r'of .*pan\.json are not .* lacks the ids \[7, 8'),
        ({'metadata': 'cityscape'}, ValueError, "metadata='cityscape' is not known"),
        (
            {'data_prefix': {'img_path': 'img', 'seg': 'pan'}},
            ValueError,
            'it needs the key img, and knows',
        ),
        ({'data_prefix': {'img': 'img'}}, ValueError, 'data_prefix needs the key seg'),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, error, message):
    layout = scenes.write_panoptic(tmp_path, [[(1, 1)]])
    with pytest.raises(error, match=message):
        PanopticDataset(**{**layout, **settings})


# Metadata: JSON file; folders of images, PNG files and label maps; their names.
LAYOUTS = {
    'coco_panoptic': (
        'annotations/panoptic_val2017.json',
        ('val2017', 'annotations/panoptic_val2017', 'panoptic_semseg_val2017'),
        ('00000000013{}.jpg', '00000000013{}.png', '00000000013{}.png'),
    ),
    'cityscapes': (
        'gtFine/cityscapes_panoptic_val.json',
        ('leftImg8bit/val', 'gtFine/cityscapes_panoptic_val', 'gtFine/val'),
        (
            'aachen/aachen_00000{}_000019_leftImg8bit.png',
            'aachen_00000{}_000019_gtFine_panoptic.png',
            'aachen/aachen_00000{}_000019_gtFine_labelTrainIds.png',
        ),
    ),
    'ade20k': (
        'ade20k_panoptic_val.json',
        ('images/validation', 'ade20k_panoptic_val', 'annotations/validation'),
        ('ADE_val_0000000{}.jpg', 'ADE_val_0000000{}.png', 'ADE_val_0000000{}.png'),
    ),
    'mapillary': (
        'annotations/panoptic_validation.json',
        ('validation/images', 'validation/panoptic', 'validation/labels'),
        ('x{}_A-b.jpg', 'x{}_A-b.png', 'x{}_A-b.png'),
    ),
}


@pytest.mark.parametrize(
    ('metadata', 'scripts_names'), [*((name, False) for name in LAYOUTS), ('cityscapes', True)]
)
def test_published_layouts(tmp_path, metadata, scripts_names):
    ann_file, folders, names = LAYOUTS[metadata]
    prefix = dict(zip(('img', 'seg', 'label_map'), folders, strict=True))
    suffix = '_gtFine_labelTrainIds.png' if metadata == 'cityscapes' else '.png'
    known = load_metadata(metadata)
    first, last = known.category_ids[0], known.category_ids[-1]
    categories = [
        {'id': i, 'name': name, 'isthing': int(label in known.thing_ids)}
        for label, (i, name) in enumerate(zip(known.category_ids, known.classes, strict=True))
    ]
    entries = []
    for number in range(3):
        photo, png, label_map = (pattern.format(number) for pattern in names)
        scenes.write_photo(tmp_path / prefix['img'] / photo)
        scenes.write_png(tmp_path / prefix['seg'] / png, scenes.stripes([26_001, 5]))
        scenes.write_photo(tmp_path / prefix['label_map'] / label_map)
        if scripts_names:
            # createPanopticImgs.py makes the image's name from the annotation's.
            photo = Path(photo).name.replace('_leftImg8bit', '_gtFine_leftImg8bit')
        segments = [(26_001, last), (5, first)]
        entries.append(scenes.panoptic_entry(f'id{number}', photo, png, segments))
    scenes.write_json(tmp_path / ann_file, entries, categories)
    dataset = DATASETS.build(
        {
            'type': 'mmseg_m2f.PanopticDataset',
            'data_root': str(tmp_path),
            'ann_file': ann_file,
            'data_prefix': prefix,
            'metadata': metadata,
            'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'mmseg_m2f.LoadSegments'}],
            'label_map_suffix': suffix,
        }
    )
    assert len(dataset) == 3
    for record in (dataset[i] for i in range(3)):
        assert Path(record['label_map_path']).is_file()
        segments = record['gt_segments']
        assert segments.labels.tolist() == [len(categories) - 1, 0]
        assert (segments.index_map() == scenes.stripes([0, 1])).all()
