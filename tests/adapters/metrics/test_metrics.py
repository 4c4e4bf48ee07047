import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_m2f.adapters.metrics.sample_fields import instances_of
from mmseg_m2f.evaluation import instance_ap
from mmseg_m2f.evaluation.panoptic_map import decode_panoptic, read_segments
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import METRICS
from tests.adapters.metrics.evaluation_scenes import (
    INSTANCES,
    METRIC_TYPES,
    empty_samples,
    evaluate,
    guessed_samples,
    panoptic_dataset,
    perfect_samples,
    with_other_ids,
)
from tests.evaluation.slow_panoptic import Segment, slow_quality

PANOPTIC_KEYS = [
    f'coco_panoptic/{name}{suffix}' for suffix in ('', '_th', '_st') for name in ('PQ', 'SQ', 'RQ')
]
INSTANCE_KEYS = [f'coco/segm_mAP{suffix}' for suffix in ('', '_50', '_75', '_s', '_m', '_l')]


@pytest.fixture(scope='module')
def dataset():
    return panoptic_dataset()


@pytest.fixture(scope='module')
def few():
    """Only the first images: more would only take more time."""
    return panoptic_dataset(indices=5)


@pytest.fixture
def meta(few):
    return few.metainfo


@pytest.fixture
def guessed(few):
    return guessed_samples(few)


@pytest.fixture
def perfect(few):
    return perfect_samples(few)


def test_perfect_predictions(dataset):
    samples, meta = perfect_samples(dataset), dataset.metainfo
    assert evaluate('PanopticMetric', samples, meta) == dict.fromkeys(PANOPTIC_KEYS, 100.0)
    result = evaluate('InstanceMetric', samples, meta)
    result.pop('coco/boundary_mAP', None)
    assert result == dict.fromkeys(INSTANCE_KEYS, pytest.approx(1))
    # Crowds have a class in the ground truth, but not in these predictions.
    without_crowds = [s for s in samples if not any(i['is_crowd'] for i in s['segments_info'])]
    result = evaluate('SemanticMetric', without_crowds, meta)
    assert result == dict.fromkeys(('aAcc', 'mIoU', 'mAcc'), 100.0)


def test_no_prediction_is_0_everywhere_and_every_class_is_logged(few, meta, said):
    samples = empty_samples(few)
    for sample in samples:
        sample['pred_sem_seg'] = {'sem_seg': torch.full_like(sample['pred_sem_seg']['sem_seg'], 1)}
    for metric in ('PanopticMetric', 'InstanceMetric'):
        assert set(evaluate(metric, samples, meta).values()) == {0.0}
    # A label map cannot be empty: all bicycle.
    assert 0 <= evaluate('SemanticMetric', samples, meta)['mIoU'] < 1
    tables = [line for line in said if 'per class' in line]
    assert [len(table.splitlines()) for table in tables] == [3 + 133, 3 + 80, 3 + 133]
    assert 'person' in tables[0]


def test_panoptic_quality_equals_the_definition_on_real_images(dataset):
    samples, meta = guessed_samples(dataset), dataset.metainfo
    scenes = []
    for sample in samples:
        true = read_segments(sample['seg_map_path'], sample['segments_info'])
        guess = decode_panoptic(sample['pred_panoptic_seg']['sem_seg'][0].numpy(), 133)
        scenes.append(
            [
                [Segment(segments.segment_map == n, *row) for n, row in enumerate(rows, 1)]
                for segments, rows in (
                    (true, zip(true.labels.tolist(), true.is_crowd, strict=True)),
                    (guess, zip(guess.labels.tolist(), strict=True)),
                )
            ]
        )
    assert any(segment.is_crowd for true, _ in scenes for segment in true)
    result = evaluate('PanopticMetric', samples, meta)
    occurring = {segment.label for scene in scenes for side in scene for segment in side}
    things = {label for label in occurring if label < 80}
    for suffix, classes in (('', occurring), ('_th', things), ('_st', occurring - things)):
        numbers = [result[f'coco_panoptic/{name}{suffix}'] for name in ('PQ', 'SQ', 'RQ')]
        assert numbers == pytest.approx(slow_quality(scenes, classes), abs=1e-6)
        assert 20 < numbers[0] < 95


def test_permuted_and_sparse_category_ids_change_nothing(guessed, meta, tmp_path):
    other = panoptic_dataset(with_other_ids(tmp_path), indices=5)
    assert other.metainfo['classes'] != meta['classes']
    assert 0 in other.metainfo['category_ids']
    table = torch.tensor([other.metainfo['classes'].index(name) for name in meta['classes']])
    renamed = []
    for sample, record in zip(guessed, other, strict=True):
        encoded, instances = sample['pred_panoptic_seg']['sem_seg'], sample['pred_instances']
        label = encoded % 1000
        changed = torch.where(encoded == 133, encoded, encoded - label + table[label % 133])
        predictions = {
            'pred_panoptic_seg': {'sem_seg': changed},
            'pred_sem_seg': {'sem_seg': table[sample['pred_sem_seg']['sem_seg']]},
            'pred_instances': {**instances, 'labels': table[instances['labels']]},
        }
        renamed.append({**record, **predictions})
    for metric in METRIC_TYPES:
        expected = pytest.approx(evaluate(metric, guessed, meta), abs=1e-9)
        assert evaluate(metric, renamed, other.metainfo) == expected


def test_instances_have_two_sources_and_two_libraries(dataset, said, monkeypatch):
    """The instance file of the tiny set was made from the panoptic one."""
    samples, meta = guessed_samples(dataset), dataset.metainfo
    with_boundaries = evaluate('InstanceMetric', samples, meta)
    assert 0.2 < with_boundaries['coco/segm_mAP'] < 0.95
    assert evaluate('InstanceMetric', samples, meta, ann_file=str(INSTANCES)) == with_boundaries
    default = evaluate('InstanceMetric', samples, meta, boundary=False)
    assert default == {key: with_boundaries[key] for key in INSTANCE_KEYS}
    assert not any('pip install faster-coco-eval' in line for line in said)
    monkeypatch.setattr(instance_ap, 'has_faster_coco_eval', lambda: False)
    slow = evaluate('InstanceMetric', samples, meta)
    assert slow == pytest.approx(default, abs=1e-9)
    assert list(slow) == INSTANCE_KEYS
    assert len([line for line in said if 'pip install faster-coco-eval' in line]) == 1
    assert any('by pycocotools' in line for line in said)


def square_sample(folder: Path) -> dict:
    ids, mask = np.zeros((60, 80, 3), np.uint8), torch.zeros(1, 60, 80, dtype=torch.bool)
    ids[10:50, 10:50, 0], mask[0, 10:50, 10:42] = 1, True
    Image.fromarray(ids).save(folder / 'ids.png')
    return {
        'img_id': 1,
        'seg_map_path': str(folder / 'ids.png'),
        'segments_info': [{'id': 1, 'label': 0, 'is_crowd': False}],
        'pred_instances': {'masks': mask, 'labels': torch.tensor([0]), 'scores': torch.ones(1)},
    }


def test_boundary_ap(tmp_path):
    """tests/evaluation/test_instance_ap.py works out the numbers: IoU 0.8 and 200 / 376."""
    pytest.importorskip('faster_coco_eval')
    result = evaluate('InstanceMetric', [square_sample(tmp_path)], {'classes': ['square']})
    found = result['coco/segm_mAP'], result['coco/boundary_mAP']
    assert found == pytest.approx((0.7, 0.1))


def test_numpy_serves_as_well_as_tensors(guessed, meta):
    as_arrays = [
        {
            key: {name: np.asarray(v) for name, v in value.items()} if 'pred' in key else value
            for key, value in sample.items()
        }
        for sample in guessed
    ]
    for metric in METRIC_TYPES:
        assert evaluate(metric, as_arrays, meta) == evaluate(metric, guessed, meta)


def test_classes_without_ids_are_numbered_as_mmdet_numbers_them(guessed, meta):
    """mmdet numbers them in the order of the file, whatever the order of the names."""
    things, expected = meta['classes'][:80], evaluate('InstanceMetric', guessed, meta)
    source = {'ann_file': str(INSTANCES)}
    for classes in (things, things[::-1]):
        assert evaluate('InstanceMetric', guessed, {'classes': classes}, **source) == expected
    with pytest.raises(ValueError, match=r"without category: \['unicorn'\]"):
        evaluate('InstanceMetric', guessed, {'classes': [*things[:-1], 'unicorn']}, **source)


def test_stuff_is_no_instance(guessed, meta, said):
    expected = evaluate('InstanceMetric', guessed, meta)
    for sample in guessed:
        instances = sample['pred_instances']
        everywhere = torch.ones_like(sample['pred_sem_seg']['sem_seg'], dtype=torch.bool)
        stuff = {'labels': torch.tensor([100]), 'scores': torch.ones(1), 'masks': everywhere}
        for key, value in stuff.items():
            instances[key] = torch.cat([instances[key], value])
    assert evaluate('InstanceMetric', guessed, meta) == expected
    before, after = (line for line in said if line.startswith('AP of'))
    assert before == after


def test_an_empty_list_of_run_lengths_has_the_size_of_the_file():
    instances = {'masks': [], 'labels': torch.zeros(0, dtype=torch.int64), 'scores': torch.zeros(0)}
    sample = {'ori_shape': (4, 5), 'img_shape': (8, 10), 'pred_instances': instances}
    assert instances_of(sample)[0].shape == (0, 4, 5)


def test_a_group_without_segments_says_why_it_is_0(perfect, meta, said):
    sample = perfect[0]
    sample['segments_info'] = [s for s in sample['segments_info'] if s['label'] < 80]
    sample['pred_panoptic_seg']['sem_seg'][sample['pred_panoptic_seg']['sem_seg'] < 133] = 133
    result = evaluate('PanopticMetric', [sample], meta)
    assert (result['coco_panoptic/PQ'], result['coco_panoptic/PQ_st']) == (100, 0)
    assert [line for line in said if line.startswith('PQ_st is 0')]


@pytest.mark.parametrize(
    ('metric', 'dropped', 'message'),
    [
        ('PanopticMetric', 'pred_panoptic_seg', r'no pred_panoptic_seg.*panoptic_on=True'),
        ('InstanceMetric', 'pred_instances', r'no pred_instances.*instance_on=True'),
        ('SemanticMetric', 'pred_sem_seg', r'no pred_sem_seg.*semantic_on=True'),
        ('PanopticMetric', 'segments_info', r"no \['segments_info'\].*meta_keys"),
    ],
)
def test_missing_fields_are_named(perfect, meta, metric, dropped, message):
    del perfect[0][dropped]
    with pytest.raises(ValueError, match=rf'000000000885\.jpg: .*{message}'):
        evaluate(metric, perfect[:1], meta)


def test_areas_of_the_file_count_only_if_wanted(perfect, meta):
    expected, stated = evaluate('PanopticMetric', perfect, meta), {'stated_areas': True}
    assert evaluate('PanopticMetric', perfect, meta, **stated) == expected
    small, large = (
        [{**s, 'segments_info': [{**i, 'area': area} for i in s['segments_info']]} for s in perfect]
        for area in (0, 10**6)
    )
    assert evaluate('PanopticMetric', small, meta) == expected
    with pytest.raises(ValueError, match=r'000000000885\.png: .*states the area 0 of segment'):
        evaluate('PanopticMetric', small, meta, **stated)
    assert evaluate('PanopticMetric', large, meta, **stated)['coco_panoptic/PQ'] == 0


@pytest.mark.parametrize('metric', METRIC_TYPES)
def test_files_that_do_not_fit_are_named(perfect, meta, tmp_path, metric):
    sample = perfect[0]
    cropped = {**sample, 'pred_instances': dict(sample['pred_instances'])}
    for field, key in (('panoptic_seg', 'sem_seg'), ('sem_seg', 'sem_seg'), ('instances', 'masks')):
        field = f'pred_{field}'
        cropped[field] = {**sample[field], key: sample[field][key][:, 1:]}
    with pytest.raises(ValueError, match=r'\(341, 512\).*truth \(342, 512\)'):
        evaluate(metric, [cropped], meta)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    Image.new('L', (2, 2)).save(tmp_path / 'grey.png')
    broken, grey = str(tmp_path / 'broken.png'), str(tmp_path / 'grey.png')
    with pytest.raises(OSError, match=r'cannot read the panoptic PNG .*broken\.png: '):
        evaluate(metric, [{**sample, 'seg_map_path': broken}], meta)
    with pytest.raises(ValueError, match=r'grey\.png: .* must be an RGB image'):
        evaluate(metric, [{**sample, 'seg_map_path': grey}], meta)
    with pytest.raises(OSError, match=r'cannot read the label map .*broken\.png'):
        evaluate('SemanticMetric', [{**sample, 'label_map_path': broken}], meta)


def test_things_must_be_known_for_panoptic_quality(perfect, meta):
    classes = meta['classes']
    with pytest.raises(ValueError, match='PanopticMetric needs thing_ids'):
        evaluate('PanopticMetric', perfect[:1], {'classes': classes})
    # mmdet's data sets name them.
    meta = {'classes': classes, 'thing_classes': classes[:80]}
    assert evaluate('PanopticMetric', perfect[:1], meta)['coco_panoptic/PQ_th'] == 100


def test_the_annotation_file_of_ap_is_checked_with_the_first_images(perfect, meta, tmp_path):
    sample, file = perfect[0], json.loads(INSTANCES.read_text())
    missing = file['categories'].pop(0)
    (tmp_path / 'foreign.json').write_text(json.dumps(file))
    (tmp_path / 'broken.json').write_text('{')
    masks = sample['pred_instances']['masks'][:, 1:]
    smaller = {**sample, 'pred_instances': {**sample['pred_instances'], 'masks': masks}}
    nowhere = r'no ann_file .*nowhere\.json.*not to data_root'
    lacking = rf"foreign\.json .*\['{missing['name']}' \({missing['id']}\)\]"
    for ann_file, given, error, message in (
        ('nowhere.json', sample, FileNotFoundError, nowhere),
        ('broken.json', sample, ValueError, r'broken\.json is no JSON file'),
        ('foreign.json', sample, ValueError, lacking),
        (INSTANCES, {**sample, 'img_id': 'other'}, ValueError, "no image with the id 'other'"),
        (INSTANCES, smaller, ValueError, r'\(341, 512\) pixels .* says \(342, 512\)'),
    ):
        with pytest.raises(error, match=message):
            evaluate('InstanceMetric', [given], meta, ann_file=str(tmp_path / ann_file))


def label_map_sample(folder: Path, values, predicted) -> dict:
    path = folder / 'labels.png'
    Image.fromarray(np.array(values, np.uint8)).save(path)
    sem_seg = torch.tensor([predicted])
    files = {'img_path': 'photo.jpg', 'label_map_path': str(path)}
    return {**files, 'pred_sem_seg': {'sem_seg': sem_seg}}


@pytest.mark.parametrize(
    ('values', 'meta', 'settings'),
    [
        ([[0, 1, 255, 1]], {}, {}),
        ([[1, 2, 0, 2]], {}, {'reduce_zero_label': True}),
        ([[1, 2, 255, 2]], {}, {'reduce_zero_label': True}),
        ([[0, 1, 9, 1]], {}, {'ignore_index': 9}),
        ([[0, 1, 65, 1]], {'metadata': 'mapillary'}, {}),
    ],
)
def test_label_maps_and_what_they_ignore(tmp_path, values, meta, settings):
    sample = label_map_sample(tmp_path, values, [[0, 1, 1, 0]])
    result = evaluate('SemanticMetric', [sample], {'classes': ['a', 'b'], **meta}, **settings)
    assert result == pytest.approx({'aAcc': 200 / 3, 'mIoU': 50, 'mAcc': 75})


def test_a_label_that_is_no_class_names_the_file_and_one_class_warns(tmp_path, warned):
    sample = label_map_sample(tmp_path, [[0, 7]], [[0, 0]])
    message = r'photo\.jpg: .*labels \[7\].*ignore_index=255, reduce_zero_label=False'
    with pytest.raises(ValueError, match=message):
        evaluate('SemanticMetric', [sample], {'classes': ['a', 'b']})
    assert not warned
    sample = label_map_sample(tmp_path, [[0, 255]], [[0, 0]])
    evaluate('SemanticMetric', [sample] * 9, {'classes': ['a']})
    assert len([line for line in warned if 'only one class' in line]) == 1


def test_crowds_have_their_class_in_label_maps(dataset):
    record = next(r for r in dataset if any(s['is_crowd'] for s in r['segments_info']))
    truth = read_segments(record['seg_map_path'], record['segments_info'])
    label_map = torch.from_numpy(np.append(0, truth.labels)[truth.segment_map])
    sample = {**record, 'pred_sem_seg': {'sem_seg': label_map[None]}}
    assert evaluate('SemanticMetric', [sample], dataset.metainfo)['aAcc'] == 100
    label_map[label_map == truth.labels[truth.is_crowd][0]] = 132
    assert evaluate('SemanticMetric', [sample], dataset.metainfo)['aAcc'] < 100


def test_cityscapes(tmp_path, said):
    """A car and a person of 200 pixels each; the predicted person is 7/10 of it."""
    pytest.importorskip('cityscapesscripts')
    instance_ids, masks = np.full((40, 80), 7, np.uint16), torch.zeros(2, 40, 80, dtype=torch.bool)
    instance_ids[10:30, :10], instance_ids[10:30, 60:70] = 26000, 24000
    masks[0, 10:30, :10], masks[1, 10:30, 60:67] = True, True
    name, gt_dir, out = 'ulm_000001_000019', tmp_path / 'gtFine/val', tmp_path / 'out'
    (gt_dir / 'ulm').mkdir(parents=True)
    Image.fromarray(instance_ids).save(gt_dir / f'ulm/{name}_gtFine_instanceIds.png')
    # Things of the panoptic order: person 11, car 13.
    instances = {'masks': masks, 'labels': torch.tensor([13, 11]), 'scores': torch.ones(2)}
    sample = {'img_path': f'ulm/{name}_leftImg8bit.png', 'img_id': 1, 'pred_instances': instances}

    def scores(meta, gt_dir=gt_dir, **settings):
        settings['gt_dir'] = str(gt_dir)
        return evaluate('CityscapesInstanceMetric', [sample], meta, **settings)

    known = load_metadata('cityscapes')
    expected = pytest.approx({'cityscapes/AP': 0.7, 'cityscapes/AP50': 1.0})
    assert scores({'classes': known.classes, 'category_ids': known.category_ids}) == expected
    assert scores({'classes': known.classes}, out_dir=str(out)) == expected
    assert (out / f'{name}_pred.txt').is_file()
    assert any('Cityscapes AP per class' in line for line in said)
    with pytest.raises(ValueError, match=r"Cityscapes does not have: \['cow'\]"):
        scores({'classes': ['cow']})
    with pytest.raises(FileNotFoundError, match='gt_dir must be'):
        scores({'classes': known.classes}, gt_dir='nowhere')


def test_packages_are_needed_by_their_metrics_only_and_missed_at_once(monkeypatch):
    for name in ('pycocotools', 'faster_coco_eval', 'cityscapesscripts.evaluation'):
        monkeypatch.setitem(sys.modules, name, None)
    assert not instance_ap.has_faster_coco_eval()
    for kind in ('PanopticMetric', 'SemanticMetric'):
        METRICS.build({'type': f'mmseg_m2f.{kind}'})
    with pytest.raises(ImportError, match='pip install pycocotools'):
        METRICS.build({'type': 'mmseg_m2f.InstanceMetric'})
    with pytest.raises(ImportError, match='pip install cityscapesscripts'):
        METRICS.build({'type': 'mmseg_m2f.CityscapesInstanceMetric', 'gt_dir': '.'})


def test_the_adapters_import_without_pycocotools():
    """Semantic models work without: it is imported where it is used."""
    code = "import sys; sys.modules['pycocotools'] = None; import mmseg_m2f.adapters"
    subprocess.run([sys.executable, '-c', code], check=True)
