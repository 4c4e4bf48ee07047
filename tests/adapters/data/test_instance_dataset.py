"""COCO's instance format: against pycocotools' own reader, and what can be wrong with a file."""

from pathlib import Path

import pytest
from pycocotools.coco import COCO

from mmseg_m2f.adapters.data import InstanceDataset, instance
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import DATASETS
from tests.adapters.data import scenes

TINY = Path(__file__).parents[3] / 'data/tiny'
PIPELINE = [{'type': 'LoadImageFromFile'}, {'type': 'mmseg_m2f.LoadSegments'}]
SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]
CROWD = {'size': list(scenes.SIZE), 'counts': [10, 20, 162]}


def tiny(name, split='val', **settings):
    return InstanceDataset(
        data_root=str(TINY / name),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix={'img': f'img/{split}'},
        **settings,
    )


@pytest.mark.parametrize('name', ['coco', 'facade'])
def test_masks_are_those_of_pycocotools(name, capsys):
    dataset = tiny(name, pipeline=PIPELINE)
    coco = COCO(str(TINY / name / 'annotations/instances_val.json'))
    label_of = {c: i for i, c in enumerate(dataset.metainfo['category_ids'])}
    num_crowds = num_instances = 0
    for record in (dataset[i] for i in range(len(dataset))):
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


def test_metadata_gives_the_classes_of_coco():
    own, official = tiny('coco'), tiny('coco', metadata='coco_instance')
    assert official.metainfo['classes'] == load_metadata('coco_instance').classes
    assert official.metainfo['thing_ids'] == tuple(range(80))
    assert [r['instances'] for r in map(own.get_data_info, range(len(own)))] == [
        r['instances'] for r in map(official.get_data_info, range(len(official)))
    ]
    assert set(official[0]['instances'][0]) == {'label', 'segmentation', 'is_crowd', 'bbox'}


def write(root, images, categories=scenes.CATEGORIES, file_name='{}.jpg'):
    """Write a data set; an image is a list of (category id, segmentation) or with iscrowd third."""
    entries = []
    for number, given in enumerate(images):
        name = file_name.format(number)
        scenes.write_photo(root / 'img' / name)
        height, width = scenes.SIZE
        image = {'id': number, 'file_name': name, 'height': height, 'width': width}
        annotations = [
            {
                'image_id': number,
                'category_id': a[0],
                'segmentation': a[1],
                'iscrowd': a[2] if len(a) > 2 else 0,
                'bbox': [1, 1, 4, 4],
            }
            for a in given
        ]
        entries.append((image, annotations))
    scenes.write_json(root / 'ins.json', entries, categories)
    return {'data_root': str(root), 'ann_file': 'ins.json', 'data_prefix': {'img': 'img'}}


def test_empty_images_stay_unless_filtered(tmp_path):
    images = [[(1, SQUARE)], [], [(1, CROWD, 1)], [(3, CROWD, 1), (2, SQUARE)]]
    layout = write(tmp_path, images)
    filtered = InstanceDataset(**layout, filter_empty=True)
    assert [filtered.get_data_info(i)['img_id'] for i in range(len(filtered))] == [0, 3]
    assert filtered.get_cat_ids(1) == [2, 1]
    assert len(InstanceDataset(**layout, filter_empty=True, test_mode=True)) == 4
    dataset = InstanceDataset(**layout, pipeline=PIPELINE)
    assert [dataset[i]['gt_segments'].labels.tolist() for i in range(4)] == [[0], [], [], [1]]
    layout = write(tmp_path, [[], [(1, CROWD, 1)]])
    with pytest.raises(ValueError, match=r'\.json: none of its 2 images .* filter_empty=False'):
        InstanceDataset(**layout, filter_empty=True)


def test_all_classes_are_things_and_can_be_chosen_by_name(tmp_path):
    layout = write(tmp_path, [[(1, SQUARE), (2, SQUARE), (3, SQUARE)]])
    metainfo = InstanceDataset(**layout).metainfo
    assert metainfo['classes'] == ('dog', 'sky', 'cat')
    assert metainfo['thing_ids'] == (0, 1, 2)
    assert metainfo['metadata'] is None
    dataset = InstanceDataset(**layout, metainfo={'classes': ('cat', 'dog')})
    assert dataset.get_cat_ids(0) == [1, 0]


def test_annotations_without_area_are_left_out(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(instance, 'print_log', lambda text, **_: said.append(text))
    shapes = [[], [[1, 1, 2, 2]], None, [[1, 1, 5, 1, 5, 5, 1]], {'size': [12, 16]}]
    layout = write(tmp_path, [[(1, shape) for shape in shapes] + [(3, [[1, 1, 2, 2], *SQUARE])]])
    (left,) = InstanceDataset(**layout)[0]['instances']
    assert (left['label'], left['segmentation']) == (2, SQUARE)
    assert said == [f'{tmp_path}/ins.json: 5 annotations have no mask and are left out']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c['annotations'][0].update(category_id=9),
            r'ins\.json: an annotation of 0\.jpg has category_id 9, .* do not list: \[1, 2, 3\]',
        ),
        (lambda c: c['annotations'][0].update(image_id=9), 'is of image 9, which is not listed'),
        (lambda c: c['annotations'][0].pop('category_id'), r"lacks \['category_id'\]"),
        (
            lambda c: c['annotations'][0].update(segmentation=SQUARE[0]),
            r'ins\.json: the segmentation .* list of polygons',
        ),
        (lambda c: c.update(annotations=None), r"ins\.json .* no list of \['annotations'\]"),
        (lambda c: c['annotations'][0].update(category_id=[1]), r'category_id \[1\]'),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, message):
    layout = write(tmp_path, [[(1, SQUARE)]])
    scenes.change_json(tmp_path / 'ins.json', change)
    with pytest.raises(ValueError, match=message):
        InstanceDataset(**layout)


def test_an_image_of_another_size_is_named(tmp_path):
    layout = write(tmp_path, [[(1, SQUARE)], [(1, {'size': [3, 4], 'counts': [12]})]])
    scenes.write_photo(tmp_path / 'img/0.jpg', (10, 10))
    dataset = InstanceDataset(**layout, pipeline=PIPELINE)
    with pytest.raises(ValueError, match=r'0\.jpg is of size \(10, 10\) .* annotations of \(12, 1'):
        dataset[0]
    with pytest.raises(ValueError, match=r'1\.jpg .* a mask of its annotations of \(3, 4\)'):
        dataset[1]


@pytest.mark.parametrize('metadata', ['coco_instance', 'cityscapes_instance', 'ade20k_instance'])
def test_the_classes_of_published_models(tmp_path, metadata):
    known = load_metadata(metadata)
    columns = zip(known.category_ids, known.classes, strict=True)
    categories = [{'id': i, 'name': name} for i, name in columns]
    images = [[(known.category_ids[-1], SQUARE), (known.category_ids[0], CROWD)]] * 3
    layout = write(tmp_path, images, categories[::-1], 'aachen/{}_leftImg8bit.png')
    dataset = DATASETS.build(
        {
            'type': 'mmseg_m2f.InstanceDataset',
            **layout,
            'metadata': metadata,
            'filter_empty': True,
            'pipeline': PIPELINE,
        }
    )
    assert len(dataset) == 3
    segments = dataset[2]['gt_segments']
    assert segments.labels.tolist() == [len(categories) - 1, 0]
    assert segments.masks().sum(axis=(1, 2)).tolist() == [16, 20]
    assert dataset.metainfo['category_ids'] == known.category_ids
