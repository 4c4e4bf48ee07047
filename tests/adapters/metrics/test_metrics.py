import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_m2f.adapters.metrics import instance, sample_fields
from mmseg_m2f.adapters.metrics.sample_fields import instances_of
from mmseg_m2f.evaluation.instance_ap import has_faster_coco_eval
from mmseg_m2f.evaluation.panoptic_map import decode_panoptic, read_segments
from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import METRICS
from tests.adapters.metrics.evaluation_scenes import (
    INSTANCES,
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
def logged(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(sample_fields, 'print_log', lambda message, *_: lines.append(message))
    return lines


def test_perfect_predictions(dataset):
    samples, meta = perfect_samples(dataset), dataset.metainfo
    assert evaluate('PanopticMetric', samples, meta) == dict.fromkeys(PANOPTIC_KEYS, 100.0)
    perfect = pytest.approx(1)
    for source in ({}, {'ann_file': str(INSTANCES)}):
        result = evaluate('InstanceMetric', samples, meta, **source)
        assert {key: result[key] for key in INSTANCE_KEYS} == dict.fromkeys(INSTANCE_KEYS, perfect)
    # Crowds have a class in the ground truth, but not in these predictions.
    without_crowds = [s for s in samples if not any(i['is_crowd'] for i in s['segments_info'])]
    result = evaluate('SemanticMetric', without_crowds, meta)
    assert result == dict.fromkeys(('aAcc', 'mIoU', 'mAcc'), 100.0)


def test_no_prediction_is_0_everywhere_and_every_class_is_logged(few, logged):
    samples, meta = empty_samples(few), few.metainfo
    for sample in samples:
        sample['pred_sem_seg'] = {'sem_seg': torch.full_like(sample['pred_sem_seg']['sem_seg'], 1)}
    for metric in ('PanopticMetric', 'InstanceMetric'):
        assert set(evaluate(metric, samples, meta).values()) == {0.0}
    # A label map cannot be empty: all bicycle.
    assert 0 <= evaluate('SemanticMetric', samples, meta)['mIoU'] < 1
    tables = [line for line in logged if 'per class' in line]
    assert [len(table.splitlines()) for table in tables] == [3 + 133, 3 + 80, 3 + 133]
    assert 'person' in tables[0]


def test_panoptic_quality_equals_the_definition_on_real_images(dataset):
    samples, meta = guessed_samples(dataset), dataset.metainfo
    scenes = []
    for sample in samples:
        truth, labels, crowds, _ = read_segments(sample['seg_map_path'], sample['segments_info'])
        true = [
            Segment(truth == 1 + i, label, bool(crowds[i]))
            for i, label in enumerate(labels.tolist())
        ]
        encoded = sample['pred_panoptic_seg']['sem_seg'][0].numpy()
        segment_map, labels = decode_panoptic(encoded, 133)
        predicted = [
            Segment(segment_map == 1 + i, label) for i, label in enumerate(labels.tolist())
        ]
        scenes.append((true, predicted))
    assert any(segment.is_crowd for true, _ in scenes for segment in true)
    result = evaluate('PanopticMetric', samples, meta)
    occurring = {segment.label for scene in scenes for side in scene for segment in side}
    things = {label for label in occurring if label < 80}
    for suffix, classes in (('', occurring), ('_th', things), ('_st', occurring - things)):
        numbers = [result[f'coco_panoptic/{name}{suffix}'] for name in ('PQ', 'SQ', 'RQ')]
        assert numbers == pytest.approx(slow_quality(scenes, classes), abs=1e-6)
        assert 20 < numbers[0] < 95


def test_permuted_and_sparse_category_ids_change_nothing(few, tmp_path):
    other = panoptic_dataset(with_other_ids(tmp_path), indices=5)
    assert other.metainfo['classes'] != few.metainfo['classes']
    assert 0 in other.metainfo['category_ids']
    samples = guessed_samples(few)
    index = [other.metainfo['classes'].index(name) for name in few.metainfo['classes']]
    table = torch.tensor(index)
    renamed = []
    for sample, record in zip(samples, other, strict=True):
        encoded, instances = sample['pred_panoptic_seg']['sem_seg'], sample['pred_instances']
        label = encoded % 1000
        changed = torch.where(encoded == 133, encoded, encoded - label + table[label % 133])
        label_map = table[sample['pred_sem_seg']['sem_seg']]
        renamed.append(
            {
                **record,
                'pred_panoptic_seg': {'sem_seg': changed},
                'pred_sem_seg': {'sem_seg': label_map},
                'pred_instances': {**instances, 'labels': table[instances['labels']]},
            }
        )
    for metric in ('PanopticMetric', 'InstanceMetric', 'SemanticMetric'):
        expected = evaluate(metric, samples, few.metainfo)
        assert evaluate(metric, renamed, other.metainfo) == pytest.approx(expected, abs=1e-9)


def test_both_sources_of_true_instances_agree(dataset):
    """The instance file of the tiny set was made from the panoptic one."""
    samples, meta = guessed_samples(dataset), dataset.metainfo
    from_segments = evaluate('InstanceMetric', samples, meta)
    assert 0.2 < from_segments['coco/segm_mAP'] < 0.95
    assert evaluate('InstanceMetric', samples, meta, ann_file=str(INSTANCES)) == from_segments


def test_boundary_ap_needs_faster_coco_eval_and_says_so(few, logged, monkeypatch):
    monkeypatch.setattr(instance, 'has_faster_coco_eval', lambda: False)
    samples, meta = guessed_samples(few), few.metainfo
    slow = evaluate('InstanceMetric', samples, meta)
    assert list(slow) == INSTANCE_KEYS
    assert len([line for line in logged if 'pip install faster-coco-eval' in line]) == 1
    assert any('by pycocotools' in line for line in logged)


def test_faster_coco_eval_says_the_same_and_adds_boundaries(dataset, logged, monkeypatch):
    pytest.importorskip('faster_coco_eval')
    samples, meta = guessed_samples(dataset), dataset.metainfo
    fast = evaluate('InstanceMetric', samples, meta)
    assert 0 < fast.pop('coco/boundary_mAP') <= fast['coco/segm_mAP']
    assert any('by faster-coco-eval' in line for line in logged)
    assert fast == evaluate('InstanceMetric', samples, meta, boundary=False)
    monkeypatch.setattr(instance, 'has_faster_coco_eval', lambda: False)
    slow = evaluate('InstanceMetric', samples, meta, boundary=False)
    assert fast == pytest.approx(slow, abs=1e-9)


def test_numpy_serves_as_well_as_tensors(few):
    samples, meta = guessed_samples(few), few.metainfo
    as_arrays = [
        {
            key: {name: np.asarray(v) for name, v in value.items()} if 'pred' in key else value
            for key, value in sample.items()
        }
        for sample in samples
    ]
    for metric in ('PanopticMetric', 'InstanceMetric', 'SemanticMetric'):
        assert evaluate(metric, as_arrays, meta) == evaluate(metric, samples, meta)


def test_classes_without_ids_are_numbered_as_mmdet_numbers_them(few):
    """mmdet numbers them in the order of the file, whatever the order of the names."""
    samples = guessed_samples(few)
    things = few.metainfo['classes'][:80]
    for meta in ({'classes': things}, {'classes': things[::-1]}):
        result = evaluate('InstanceMetric', samples, meta, ann_file=str(INSTANCES))
        assert result == evaluate('InstanceMetric', samples, few.metainfo)
    meta = {'classes': [*things[:-1], 'unicorn']}
    with pytest.raises(ValueError, match=r"without category: \['unicorn'\]"):
        evaluate('InstanceMetric', samples, meta, ann_file=str(INSTANCES))


def test_stuff_is_no_instance(few, logged):
    samples = guessed_samples(few)
    expected = evaluate('InstanceMetric', samples, few.metainfo)
    for sample in samples:
        instances = sample['pred_instances']
        instances['labels'] = torch.cat([instances['labels'], torch.tensor([100])])
        instances['scores'] = torch.cat([instances['scores'], torch.ones(1)])
        everywhere = torch.ones_like(sample['pred_sem_seg']['sem_seg'], dtype=torch.bool)
        instances['masks'] = torch.cat([instances['masks'], everywhere])
    assert evaluate('InstanceMetric', samples, few.metainfo) == expected
    before, after = (line for line in logged if line.startswith('segm AP of'))
    assert before == after


def test_an_empty_list_of_run_lengths_has_the_size_of_the_file():
    instances = {'masks': [], 'labels': torch.zeros(0, dtype=torch.int64), 'scores': torch.zeros(0)}
    sample = {'ori_shape': (4, 5), 'img_shape': (8, 10), 'pred_instances': instances}
    assert instances_of(sample).masks.shape == (0, 4, 5)


def test_a_group_without_segments_says_why_it_is_0(few, logged):
    [sample] = perfect_samples(few)[:1]
    sample['segments_info'] = [s for s in sample['segments_info'] if s['label'] < 80]
    sample['pred_panoptic_seg']['sem_seg'][sample['pred_panoptic_seg']['sem_seg'] < 133] = 133
    result = evaluate('PanopticMetric', [sample], few.metainfo)
    assert (result['coco_panoptic/PQ'], result['coco_panoptic/PQ_st']) == (100, 0)
    assert [line for line in logged if line.startswith('PQ_st is 0')]


@pytest.mark.parametrize(
    ('metric', 'dropped', 'message'),
    [
        ('PanopticMetric', 'pred_panoptic_seg', r'no pred_panoptic_seg.*panoptic_on=True'),
        ('InstanceMetric', 'pred_instances', r'no pred_instances.*instance_on=True'),
        ('SemanticMetric', 'pred_sem_seg', r'no pred_sem_seg.*semantic_on=True'),
        ('PanopticMetric', 'segments_info', r"no \['segments_info'\].*meta_keys"),
    ],
)
def test_what_is_missing_is_named(few, metric, dropped, message):
    [sample] = perfect_samples(few)[:1]
    del sample[dropped]
    with pytest.raises(ValueError, match=rf'000000000885\.jpg: .*{message}'):
        evaluate(metric, [sample], few.metainfo)


def test_areas_of_the_file_count_only_if_wanted(few):
    samples = perfect_samples(few)
    expected = evaluate('PanopticMetric', samples, few.metainfo)
    stated = {'stated_areas': True}
    assert evaluate('PanopticMetric', samples, few.metainfo, **stated) == expected
    for sample in samples:
        sample['segments_info'] = [{**s, 'area': 0} for s in sample['segments_info']]
    assert evaluate('PanopticMetric', samples, few.metainfo) == expected
    with pytest.raises(ValueError, match=r'000000000885\.png: .*states the area 0 of segment'):
        evaluate('PanopticMetric', samples, few.metainfo, **stated)
    for sample in samples:
        sample['segments_info'] = [{**s, 'area': 10**6} for s in sample['segments_info']]
    assert evaluate('PanopticMetric', samples, few.metainfo, **stated)['coco_panoptic/PQ'] == 0


@pytest.mark.parametrize('metric', ['PanopticMetric', 'InstanceMetric', 'SemanticMetric'])
def test_a_broken_png_is_named(few, tmp_path, metric):
    [sample] = perfect_samples(few)[:1]
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'no image')
    Image.new('L', (2, 2)).save(tmp_path / 'grey.png')
    for name, error, message in (
        ('broken.png', OSError, r'cannot read the panoptic PNG .*broken\.png: '),
        ('grey.png', ValueError, r'grey\.png: .* must be an RGB image'),
    ):
        sample['seg_map_path'] = str(tmp_path / name)
        with pytest.raises(error, match=message):
            evaluate(metric, [sample], few.metainfo)
    sample['label_map_path'] = str(broken)
    if metric == 'SemanticMetric':
        with pytest.raises(OSError, match=r'cannot read the label map .*broken\.png'):
            evaluate(metric, [sample], few.metainfo)


def test_things_must_be_known_for_panoptic_quality(few):
    samples = perfect_samples(few)[:1]
    classes = few.metainfo['classes']
    metric = METRICS.build({'type': 'mmseg_m2f.PanopticMetric'})
    metric.dataset_meta = {'classes': classes}
    with pytest.raises(ValueError, match='PanopticMetric needs thing_ids'):
        metric.process({}, samples)
    # mmdet's data sets name them.
    meta = {'classes': classes, 'thing_classes': classes[:80]}
    assert evaluate('PanopticMetric', samples, meta)['coco_panoptic/PQ_th'] == 100


def test_sizes_must_agree(few):
    [sample] = perfect_samples(few)[:1]
    for field in ('pred_panoptic_seg', 'pred_sem_seg'):
        sample[field] = {'sem_seg': sample[field]['sem_seg'][:, 1:]}
    sample['pred_instances']['masks'] = sample['pred_instances']['masks'][:, 1:]
    for metric in ('PanopticMetric', 'InstanceMetric', 'SemanticMetric'):
        with pytest.raises(ValueError, match=r'\(341, 512\).*truth \(342, 512\)'):
            evaluate(metric, [sample], few.metainfo)


def test_the_annotation_file_of_ap_is_checked_with_the_first_images(few, tmp_path):
    [sample] = perfect_samples(few)[:1]
    file = json.loads(INSTANCES.read_text())
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
        path = str(tmp_path / ann_file)
        metric = METRICS.build({'type': 'mmseg_m2f.InstanceMetric', 'ann_file': path})
        metric.dataset_meta = few.metainfo
        with pytest.raises(error, match=message):
            metric.process({}, [given])


def label_map_sample(folder: Path, values, predicted) -> dict:
    path = folder / 'labels.png'
    Image.fromarray(np.array(values, np.uint8)).save(path)
    return {
        'img_path': 'photo.jpg',
        'label_map_path': str(path),
        'pred_sem_seg': {'sem_seg': torch.tensor([predicted])},
    }


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


def test_a_label_that_is_no_class_names_the_file_and_the_settings(tmp_path):
    sample = label_map_sample(tmp_path, [[0, 7]], [[0, 0]])
    message = r'photo\.jpg: .*labels \[7\].*ignore_index=255, reduce_zero_label=False'
    with pytest.raises(ValueError, match=message):
        evaluate('SemanticMetric', [sample], {'classes': ['a', 'b']})


def test_crowds_have_their_class_in_label_maps(dataset):
    record = next(r for r in dataset if any(s['is_crowd'] for s in r['segments_info']))
    [crowd] = [s for s in record['segments_info'] if s['is_crowd']][:1]
    segment_map, labels, *_ = read_segments(record['seg_map_path'], record['segments_info'])
    label_map = torch.from_numpy(np.append(0, labels)[segment_map])
    sample = {**record, 'pred_sem_seg': {'sem_seg': label_map[None]}}
    assert evaluate('SemanticMetric', [sample], dataset.metainfo)['aAcc'] == 100
    label_map[label_map == crowd['label']] = 132
    assert evaluate('SemanticMetric', [sample], dataset.metainfo)['aAcc'] < 100


def test_one_class_warns_once(tmp_path, logged):
    sample = label_map_sample(tmp_path, [[0, 255]], [[0, 0]])
    evaluate('SemanticMetric', [sample] * 9, {'classes': ['a']})
    assert len([line for line in logged if 'only one class' in line]) == 1


CITY = 'leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png'


def cityscapes_sample(folder: Path) -> dict:
    """A car and a person of 200 pixels each; the predicted person is 7/10 of it."""
    instance_ids = np.full((40, 80), 7, np.uint16)
    instance_ids[10:30, :10], instance_ids[10:30, 60:70] = 26000, 24000
    path = folder / 'gtFine/val/ulm/ulm_000001_000019_gtFine_instanceIds.png'
    path.parent.mkdir(parents=True)
    Image.fromarray(instance_ids).save(path)
    masks = torch.zeros(2, 40, 80, dtype=torch.bool)
    masks[0, 10:30, :10], masks[1, 10:30, 60:67] = True, True
    # Things of the panoptic order: person 11, car 13.
    instances = {'masks': masks, 'labels': torch.tensor([13, 11]), 'scores': torch.ones(2)}
    return {'img_path': CITY, 'img_id': 1, 'pred_instances': instances}


def test_cityscapes(tmp_path, logged):
    pytest.importorskip('cityscapesscripts')
    known = load_metadata('cityscapes')
    sample, gt_dir = cityscapes_sample(tmp_path), str(tmp_path / 'gtFine/val')
    expected = pytest.approx({'cityscapes/AP': 0.7, 'cityscapes/AP50': 1.0})
    for meta in (
        {'classes': known.classes, 'category_ids': known.category_ids},
        {'classes': known.classes},
    ):
        assert evaluate('CityscapesInstanceMetric', [sample], meta, gt_dir=gt_dir) == expected
    assert 'per class' in logged[0]
    out = tmp_path / 'out'
    evaluate('CityscapesInstanceMetric', [sample], meta, gt_dir=gt_dir, out_dir=str(out))
    assert (out / 'ulm_000001_000019_pred.txt').is_file()
    with pytest.raises(ValueError, match=r"Cityscapes does not have: \['cow'\]"):
        evaluate('CityscapesInstanceMetric', [sample], {'classes': ['cow']}, gt_dir=gt_dir)
    with pytest.raises(FileNotFoundError, match='gt_dir must be'):
        evaluate('CityscapesInstanceMetric', [sample], meta, gt_dir='nowhere')


def test_packages_are_needed_by_their_metrics_only_and_missed_at_once(monkeypatch):
    missing = ('pycocotools', 'faster_coco_eval', 'cityscapesscripts.evaluation')
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    assert not has_faster_coco_eval()
    for kind in ('PanopticMetric', 'SemanticMetric'):
        METRICS.build({'type': f'mmseg_m2f.{kind}'})
    with pytest.raises(ImportError, match='pip install pycocotools'):
        METRICS.build({'type': 'mmseg_m2f.InstanceMetric'})
    with pytest.raises(ImportError, match='pip install cityscapesscripts'):
        METRICS.build({'type': 'mmseg_m2f.CityscapesInstanceMetric', 'gt_dir': '.'})
