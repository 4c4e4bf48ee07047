import json
import subprocess
import sys
from itertools import chain
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
from tests.adapters.metrics import evaluation_scenes as scenes
from tests.adapters.metrics.evaluation_scenes import METRIC_TYPES, evaluate
from tests.evaluation import cityscapes_scene as city
from tests.evaluation.slow_panoptic import Segment, slow_quality

QUALITIES = ('PQ', 'SQ', 'RQ')
PANOPTIC_KEYS = [f'coco_panoptic/{q}{suffix}' for suffix in ('', '_th', '_st') for q in QUALITIES]
INSTANCE_KEYS = [f'coco/segm_mAP{suffix}' for suffix in ('', '_50', '_75', '_s', '_m', '_l')]
ANN_FILE = {'ann_file': str(scenes.INSTANCES)}


@pytest.fixture(scope='module')
def few():
    """Only some of the images, one with a crowd: more would only take more time."""
    return scenes.panoptic_dataset(indices=[0, 1, 2, 3, 6])


@pytest.fixture
def perfect(few):
    return scenes.perfect_samples(few)


def test_perfect_predictions(perfect, few):
    meta, percent = few.metainfo, evaluate('PanopticMetric', perfect, few.metainfo)
    # Crowds have a class in the true label maps, but not in these predictions.
    assert evaluate('SemanticMetric', perfect, meta)['aAcc'] < 100
    truth = read_segments(perfect[4]['seg_map_path'], perfect[4]['segments_info'])
    label_map = np.append(0, truth.labels)[truth.segment_map]
    perfect[4]['pred_sem_seg'] = {'sem_seg': torch.from_numpy(label_map)[None]}
    percent |= evaluate('SemanticMetric', perfect, meta)
    assert percent == dict.fromkeys([*PANOPTIC_KEYS, 'aAcc', 'mIoU', 'mAcc'], 100.0)
    result = evaluate('InstanceMetric', perfect, meta, boundary=False)
    assert result == dict.fromkeys(INSTANCE_KEYS, pytest.approx(1))


def test_no_prediction_is_0_everywhere_and_every_class_is_logged(few, said):
    samples, meta = scenes.empty_samples(few), few.metainfo
    for metric in ('PanopticMetric', 'InstanceMetric'):
        assert set(evaluate(metric, samples, meta).values()) == {0.0}
    # A label map cannot be empty: all rug.
    assert 0 <= evaluate('SemanticMetric', samples, meta)['mIoU'] < 1
    tables = [line.splitlines() for line in said if 'per class' in line]
    assert [len(lines) for lines in tables] == [3 + 133, 3 + 80, 3 + 133]


def listed(segments, crowds) -> list[Segment]:
    rows = zip(segments.labels.tolist(), crowds, strict=True)
    return [Segment(segments.segment_map == n, *row) for n, row in enumerate(rows, 1)]


def test_panoptic_quality_equals_the_definition_on_real_images(few):
    samples, meta = scenes.guessed_samples(few), few.metainfo
    pairs = []
    for sample in samples:
        truth = read_segments(sample['seg_map_path'], sample['segments_info'])
        guess = decode_panoptic(sample['pred_panoptic_seg']['sem_seg'][0].numpy(), 133)
        pairs.append((listed(truth, truth.is_crowd), listed(guess, guess.labels < 0)))
    result = evaluate('PanopticMetric', samples, meta)
    occurring = {segment.label for pair in pairs for side in pair for segment in side}
    things = {label for label in occurring if label < 80}
    for suffix, classes in (('', occurring), ('_th', things), ('_st', occurring - things)):
        numbers = [result[f'coco_panoptic/{name}{suffix}'] for name in QUALITIES]
        assert numbers == pytest.approx(slow_quality(pairs, classes), abs=1e-6)
        assert 20 < numbers[0] < 95


def test_permuted_and_sparse_category_ids_and_numpy_change_nothing(few, tmp_path):
    samples, meta = scenes.guessed_samples(few), few.metainfo
    content = json.loads(scenes.ANN_FILE.read_text())
    new = {category['id']: 7 * i for i, category in enumerate(content['categories'])}
    content['categories'] = [{**c, 'id': new[c['id']]} for c in content['categories'][::-1]]
    for segment in chain(*(entry['segments_info'] for entry in content['annotations'])):
        segment['category_id'] = new[segment['category_id']]
    (tmp_path / 'panoptic.json').write_text(json.dumps(content))
    other = scenes.panoptic_dataset(tmp_path / 'panoptic.json', indices=[0, 1, 2, 3, 6])
    table = np.array([other.metainfo['classes'].index(name) for name in meta['classes']])
    renamed = []
    for sample, record in zip(samples, other, strict=True):
        encoded = sample['pred_panoptic_seg']['sem_seg'].numpy()
        instances = {key: values.numpy() for key, values in sample['pred_instances'].items()}
        label = encoded % 1000
        changed = np.where(encoded == 133, encoded, encoded - label + table[label % 133])
        fields = {
            'pred_panoptic_seg': {'sem_seg': changed},
            'pred_sem_seg': {'sem_seg': table[sample['pred_sem_seg']['sem_seg'].numpy()]},
            'pred_instances': {**instances, 'labels': table[instances['labels']]},
        }
        renamed.append({**record, **fields})
    for metric in METRIC_TYPES:
        expected = pytest.approx(evaluate(metric, samples, meta), abs=1e-9)
        assert evaluate(metric, renamed, other.metainfo) == expected


def test_instances_have_two_sources_and_two_libraries(few, said, monkeypatch):
    """The instance file of the tiny set was made from the panoptic one."""
    samples, meta = scenes.guessed_samples(few), few.metainfo
    result = evaluate('InstanceMetric', samples, meta, boundary=False)
    assert 0.2 < result['coco/segm_mAP'] < 0.95
    assert evaluate('InstanceMetric', samples, meta, boundary=False, **ANN_FILE) == result
    monkeypatch.setattr(instance_ap, 'has_faster_coco_eval', lambda: False)
    slow = evaluate('InstanceMetric', samples, meta)
    assert list(slow) == INSTANCE_KEYS
    assert slow == pytest.approx(result, abs=1e-9)
    assert len([line for line in said if 'pip install faster-coco-eval' in line]) == 1


def test_boundary_ap(tmp_path):
    """The numbers are worked out in tests/evaluation: masks have IoU 0.8, boundaries 200 / 376."""
    pytest.importorskip('faster_coco_eval')
    ids, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), bool)
    ids[10:50, 10:50, 0], mask[10:50, 10:42] = 1, True
    Image.fromarray(ids).save(tmp_path / 'ids.png')
    files = {'img_id': 1, 'height': 60, 'width': 80, 'seg_map_path': str(tmp_path / 'ids.png')}
    record = {**files, 'segments_info': [{'id': 1, 'label': 0, 'is_crowd': False}]}
    meta = {'classes': ['square'], 'thing_ids': [0]}
    result = evaluate('InstanceMetric', [scenes.sample_of(record, meta, [mask], [0])], meta)
    assert (result['coco/segm_mAP'], result['coco/boundary_mAP']) == pytest.approx((0.7, 0.1))


def test_classes_without_ids_are_numbered_as_mmdet_numbers_them(few):
    """mmdet numbers them in the order of the file, whatever the order of the names."""
    samples, things = scenes.guessed_samples(few), few.metainfo['classes'][:80]
    expected = evaluate('InstanceMetric', samples, few.metainfo)
    for classes in (things, things[::-1]):
        assert evaluate('InstanceMetric', samples, {'classes': classes}, **ANN_FILE) == expected
    with pytest.raises(ValueError, match=r"without category: \['unicorn'\]"):
        evaluate('InstanceMetric', samples, {'classes': [*things[:-1], 'unicorn']}, **ANN_FILE)


def test_stuff_is_no_instance(few, said):
    samples = scenes.guessed_samples(few)
    expected = evaluate('InstanceMetric', samples, few.metainfo)
    for sample in samples:
        instances = sample['pred_instances']
        everywhere = torch.ones_like(sample['pred_sem_seg']['sem_seg'], dtype=torch.bool)
        stuff = {'labels': torch.tensor([100]), 'scores': torch.ones(1), 'masks': everywhere}
        for key, value in stuff.items():
            instances[key] = torch.cat([instances[key], value])
    assert evaluate('InstanceMetric', samples, few.metainfo) == expected
    before, after = (line for line in said if line.startswith('AP of'))
    assert before == after


def test_an_empty_list_of_run_lengths_has_the_size_of_the_file():
    instances = {'masks': [], 'labels': torch.zeros(0, dtype=torch.int64), 'scores': torch.zeros(0)}
    sample = {'ori_shape': (4, 5), 'img_shape': (8, 10), 'pred_instances': instances}
    assert instances_of(sample)[0].shape == (0, 4, 5)


def test_panoptic_quality_needs_things_and_says_why_a_group_is_0(perfect, few, said):
    classes = few.metainfo['classes']
    with pytest.raises(ValueError, match='PanopticMetric needs thing_ids'):
        evaluate('PanopticMetric', perfect, {'classes': classes})
    sample = perfect[0]
    sample['segments_info'] = [s for s in sample['segments_info'] if s['label'] < 80]
    sample['pred_panoptic_seg']['sem_seg'][sample['pred_panoptic_seg']['sem_seg'] < 133] = 133
    # mmdet's data sets name the things.
    meta = {'classes': classes, 'thing_classes': classes[:80]}
    result = evaluate('PanopticMetric', [sample], meta)
    assert [result[f'coco_panoptic/PQ{suffix}'] for suffix in ('', '_th', '_st')] == [100, 100, 0]
    assert [line for line in said if line.startswith('PQ_st is 0')]


def test_areas_of_the_file_count_only_if_wanted(perfect, few):
    meta, perfection = few.metainfo, dict.fromkeys(PANOPTIC_KEYS, 100.0)
    assert evaluate('PanopticMetric', perfect, meta, stated_areas=True) == perfection
    for sample in perfect:
        sample['segments_info'] = [{**s, 'area': 10**6} for s in sample['segments_info']]
    assert evaluate('PanopticMetric', perfect, meta) == perfection
    assert evaluate('PanopticMetric', perfect, meta, stated_areas=True)['coco_panoptic/PQ'] == 0


LACKING = r"foreign\.json .*\['person' \(1\)\]"
CROPPED = r'\(341, 512\)( pixels)? .*(truth|says) \(342, 512\)'


@pytest.mark.parametrize(
    ('metric', 'changes', 'error', 'message'),
    [
        ('Panoptic', {'pred_panoptic_seg': None}, ValueError, r'885\.jpg: .*panoptic_on=True'),
        ('Instance', {'pred_instances': None}, ValueError, r'885\.jpg: .*instance_on=True'),
        ('Semantic', {'pred_sem_seg': None}, ValueError, r'885\.jpg: .*semantic_on=True'),
        ('', {'segments_info': None}, ValueError, r"885\.jpg: .*no \['segments_info'\].*meta_keys"),
        ('', {'seg_map_path': 'broken.png'}, OSError, r'the panoptic PNG .*broken\.png: '),
        ('', {'seg_map_path': 'gray.png'}, ValueError, r'gray\.png: .* must be an RGB image'),
        ('Semantic', {'label_map_path': 'broken.png'}, OSError, r'the label map .*broken\.png'),
        ('', {'cropped': True}, ValueError, r'885\.jpg: .*' + CROPPED),
        ('Instance', {'ann_file': 'no.json'}, FileNotFoundError, r'no\.json.*not to data_root'),
        ('Instance', {'ann_file': 'broken.png'}, ValueError, r'broken\.png is no JSON file'),
        ('Instance', {'ann_file': 'foreign.json'}, ValueError, LACKING),
        ('Instance', {**ANN_FILE, 'img_id': 'a'}, ValueError, "no image with the id 'a'"),
        ('Instance', {**ANN_FILE, 'cropped': True}, ValueError, CROPPED),
    ],
)
def test_a_sample_or_file_that_does_not_fit_is_named(
    perfect, few, tmp_path, monkeypatch, metric, changes, error, message
):
    monkeypatch.chdir(tmp_path)
    Path('broken.png').write_bytes(b'no image')
    Image.new('L', (2, 2)).save('gray.png')
    file = json.loads(scenes.INSTANCES.read_text())
    Path('foreign.json').write_text(json.dumps({**file, 'categories': file['categories'][1:]}))
    sample = {k: v for k, v in {**perfect[0], **changes}.items() if v is not None}
    if 'cropped' in changes:
        for field in scenes.FIELDS:
            key = 'masks' if field == 'pred_instances' else 'sem_seg'
            sample[field][key] = sample[field][key][:, 1:]
    settings = {'ann_file': changes['ann_file']} if 'ann_file' in changes else {}
    for name in (name for name in METRIC_TYPES if metric in name):
        with pytest.raises(error, match=message):
            evaluate(name, [sample], few.metainfo, **settings)


def label_map_sample(folder: Path, values, predicted) -> dict:
    path = folder / 'labels.png'
    Image.fromarray(np.array(values, np.uint8)).save(path)
    files = {'img_path': 'photo.jpg', 'label_map_path': str(path)}
    return {**files, 'pred_sem_seg': {'sem_seg': torch.tensor([predicted])}}


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
    evaluate('SemanticMetric', [sample] * 9, {'classes': ['a']}, ignore_index=7)
    assert len([line for line in warned if 'only one class' in line]) == 1


def test_cityscapes(tmp_path, said):
    """The person is predicted with 7 of 10 columns. The panoptic classes 11 and 13: person, car."""
    pytest.importorskip('cityscapesscripts')
    masks = np.array([*city.CARS, city.box(60, 7)])
    instances = {'masks': masks, 'labels': np.array([13, 13, 11]), 'scores': np.ones(3)}
    samples = [{'img_path': f'ulm/{city.NAME}_leftImg8bit.png', 'pred_instances': instances}]
    files = {'gt_dir': str(city.write_truth(tmp_path)), 'out_dir': str(tmp_path / 'out')}
    known = load_metadata('cityscapes')
    for ids in ({'category_ids': known.category_ids}, {}):
        meta = {'classes': known.classes, **ids}
        result = evaluate('CityscapesInstanceMetric', samples, meta, **files)
        assert result == pytest.approx({'cityscapes/AP': 0.7, 'cityscapes/AP50': 1.0})
    assert (tmp_path / f'out/{city.NAME}_pred.txt').is_file()
    # A second image, in which nothing is found, halves every recall.
    city.write_truth(tmp_path, 'ulm_000002_000019')
    nothing = {key: values[:0] for key, values in instances.items()}
    missed = {'img_path': 'ulm/ulm_000002_000019_leftImg8bit.png', 'pred_instances': nothing}
    result = evaluate('CityscapesInstanceMetric', [*samples, missed], meta, **files)
    assert result == pytest.approx({'cityscapes/AP': 0.35, 'cityscapes/AP50': 0.5})
    assert any('Cityscapes AP per class' in line for line in said)
    with pytest.raises(ValueError, match=r"Cityscapes does not have: \['cow'\]"):
        evaluate('CityscapesInstanceMetric', samples, {'classes': ['cow']}, **files)
    with pytest.raises(FileNotFoundError, match='gt_dir must be'):
        evaluate('CityscapesInstanceMetric', samples, meta, gt_dir='nowhere')


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
