import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmseg_m2f.evaluation import instance_ap
from mmseg_m2f.evaluation.coco_json import CocoFile
from mmseg_m2f.evaluation.panoptic_map import AnnotatedSegments
from mmseg_m2f.evaluation.rle import encode_masks

ANN_FILE = Path(__file__).parents[2] / 'data/tiny/coco/annotations/instances_val.json'
NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@pytest.fixture(scope='module')
def file() -> CocoFile:
    return CocoFile(ANN_FILE.read_bytes(), str(ANN_FILE))


@pytest.fixture(scope='module')
def guessed(file) -> dict[int, list[dict]]:
    """Moved copies of the true masks, some under another class, several with the same score."""
    random, ids, label = np.random.default_rng(0), sorted(file.categories), np.zeros(1, int)
    guesses = {image_id: [] for image_id in file.sizes}
    for image_id, instances in file.instances.items():
        for instance in np.repeat(instances, random.integers(0, 3, len(instances))):
            mask = coco_mask.decode(instance['segmentation']).astype(bool)
            moved = np.roll(mask, random.integers(-4, 5, 2), (0, 1))[None]
            category = instance['category_id'] if random.random() < 0.9 else random.choice(ids)
            score = random.integers(0, 10, 1) / 10
            guesses[image_id] += instance_ap.predicted_instances(moved, label, score, [category])
    return guesses


def images(file: CocoFile, predicted: dict, category_ids) -> list[instance_ap.ImageInstances]:
    truth = {i: file.true_instances(i, size, category_ids) for i, size in file.sizes.items()}
    return [
        instance_ap.ImageInstances(image_id=i, size=size, predicted=predicted[i], true=truth[i])
        for i, size in file.sizes.items()
    ]


def test_equals_pycocotools_to_the_last_bit_in_any_order(file, guessed):
    results = [{'image_id': i, **instance} for i in guessed for instance in guessed[i]]
    truth = COCO(str(ANN_FILE))
    expected = COCOeval(truth, truth.loadRes(results), 'segm')
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    assert (expected.stats[:6] > 0).all()  # no metric is trivially 0 or undefined
    ids = sorted(file.categories)
    shuffled = np.random.default_rng(1).permutation(ids).tolist()
    average, per_class = instance_ap.instance_scores(images(file, guessed, ids)[::-1], shuffled)
    assert list(average) == list(NAMES)
    assert list(average.values()) == expected.stats[:6].tolist()
    precision = expected.eval['precision'][..., 0, :]  # its last axis: the best 1, 10 and 100 count
    for row, category_id in zip(per_class, shuffled, strict=True):
        of_class = precision[:, :, ids.index(category_id), 2]
        values = of_class.mean(), of_class[0].mean(), of_class[5].mean()
        np.testing.assert_array_equal(row, np.where(of_class.min() < 0, np.nan, values))
    # Only the given classes and the best instances count.
    average, _ = instance_ap.instance_scores(images(file, guessed, [1]), [1], max_dets=1)
    assert average['mAP'] == precision[:, :, ids.index(1), 0].mean()


def test_perfect_is_1_and_nothing_is_0(file):
    ids = sorted(file.categories)
    perfect = {
        image_id: [{**instance, 'score': 1.0} for instance in instances if not instance['iscrowd']]
        for image_id, instances in file.instances.items()
    }
    average, _ = instance_ap.instance_scores(images(file, perfect, ids), ids)
    assert average == pytest.approx(dict.fromkeys(NAMES, 1))
    nothing = images(file, dict.fromkeys(file.sizes, ()), ids)
    average, per_class = instance_ap.instance_scores(nothing, ids)
    assert average == dict.fromkeys(NAMES, 0.0)
    occurring = {i['category_id'] for instances in perfect.values() for i in instances}
    np.testing.assert_array_equal(per_class[:, 0], [0 if i in occurring else np.nan for i in ids])


def square(width: int) -> np.ndarray:
    mask = np.zeros((1, 60, 80), bool)
    mask[0, 10:50, 10 : 10 + width] = True
    return mask


@pytest.mark.parametrize(
    ('iou_type', 'faster', 'ap', 'ap75'),
    [('segm', False, 0.7, 1), ('segm', True, 0.7, 1), ('boundary', True, 0.1, 0)],
)
def test_numbers_worked_out_by_hand(iou_type, faster, ap, ap75):
    """A true square of 40 x 40 pixels, COCO's medium, and 32 of its columns are predicted.

    Masks: IoU 0.8, seven of ten thresholds. The diagonal of the image is 100, so boundaries are 2
    pixels wide (2 %): the true one is 40 x 40 - 36 x 36 = 304 pixels, that of 40 x 32 is 272. They
    share the left side (80), and of top and bottom 4 x 30 pixels: IoU 200 / 376, one threshold.
    """
    if faster:
        pytest.importorskip('faster_coco_eval')
    truth = AnnotatedSegments(square(40)[0].astype(np.int32), np.zeros(1, int), np.zeros(1, bool))
    predicted = instance_ap.predicted_instances(square(32), np.zeros(1, int), np.ones(1), [5])
    true = instance_ap.true_instances(truth, np.ones(1, bool), [5])
    image = instance_ap.ImageInstances(image_id=1, size=(60, 80), predicted=predicted, true=true)
    average, _ = instance_ap.instance_scores([image], [5], iou_type=iou_type, faster=faster)
    # An area that no true instance has is -1.
    assert list(average.values()) == pytest.approx([ap, 1, ap75, -1, ap, -1])


def test_things_among_panoptic_segments():
    segment_map = np.zeros((4, 6), np.int32)
    segment_map[:, :2], segment_map[0, 2:5], segment_map[3, 5] = 1, 2, 3
    labels, is_crowd = np.array([2, 0, 0, 1]), np.array([False, False, True, False])
    truth = AnnotatedSegments(segment_map, labels, is_crowd)
    # Class 2 is stuff, and the only segment of class 1 has no pixel.
    instances = instance_ap.true_instances(truth, np.array([True, True, False]), [11, 12, 13])
    assert [(i['area'], i['iscrowd']) for i in instances] == [(3, 0), (1, 1)]
    assert {i['category_id'] for i in instances} == {11}
    np.testing.assert_array_equal(coco_mask.decode(instances[0]['segmentation']), segment_map == 2)


def test_run_lengths_are_those_of_pycocotools_in_any_layout_of_memory():
    masks = np.random.default_rng(0).random((3, 7, 5)) < 0.5
    for layout in (masks, np.ascontiguousarray(masks.transpose(0, 2, 1)).transpose(0, 2, 1)):
        rles = encode_masks(layout)
        assert json.loads(json.dumps(rles)) == rles
        for rle, mask in zip(rles, masks, strict=True):
            assert rle['size'] == [7, 5]
            np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    assert encode_masks(masks[:0]) == []


def parsed(*annotations, **others) -> CocoFile:
    """Parse a file with one image and one category; ``others`` replaces its lists."""
    content = {
        'images': [{'id': 'a', 'height': 5, 'width': 6}],
        'categories': [{'id': 3, 'name': 'x'}],
        'annotations': [{'image_id': 'a', 'category_id': 3, **given} for given in annotations],
        **others,
    }
    return CocoFile(json.dumps(content), 'x.json')


SQUARE = [0, 0, 4, 0, 4, 3, 0, 3]


@pytest.mark.parametrize(
    'shape', [[SQUARE], [[1, 1, 2, 2], SQUARE], {'size': [5, 6], 'counts': [0, *[3, 2] * 3, 3, 12]}]
)
def test_missing_values_are_filled_in_and_shapes_without_an_area_left_out(shape):
    shapes = [shape, [[1, 1, 2, 2]], [], None]
    annotations = [{'segmentation': s, 'area': None, 'iscrowd': None} for s in shapes]
    elsewhere = [{'segmentation': shape, 'category_id': 4}, {'segmentation': shape, 'image_id': 7}]
    file = parsed(*annotations, *elsewhere)
    [true] = file.true_instances('a', (5, 6), [3])
    assert (true['category_id'], true['area'], true['iscrowd']) == (3, 12, 0)
    assert true['segmentation'] in (shape, [SQUARE])
    with pytest.raises(ValueError, match=r"no image with the id 'b'.*ann_file"):
        file.true_instances('b', (5, 6), [3])
    with pytest.raises(ValueError, match=r'\(6, 5\) pixels .*x\.json says \(5, 6\)'):
        file.true_instances('a', (6, 5), [3])


@pytest.mark.parametrize(
    ('segmentation', 'others', 'message'),
    [
        (None, {'annotations': [7]}, 'the annotation 7 is no object'),
        ([1, 1, 5, 1, 5, 5], {}, 'list of polygons'),
        ('abc', {}, 'list of polygons'),
        ({'size': [6, 5], 'counts': [30]}, {}, r"image 'a' is of size \(6, 5\) .* of \(5, 6\)"),
        (None, {'categories': [{'id': '3', 'name': 'x'}]}, "'x' is '3'; .* whole numbers"),
        (None, {'images': [{'id': [1], 'height': 5, 'width': 6}]}, 'an id'),
    ],
)
def test_a_wrong_file_is_refused_by_name(segmentation, others, message):
    with pytest.raises(ValueError, match=rf'x\.json.*{message}'):
        parsed({'segmentation': segmentation}, **others)
    with pytest.raises(ValueError, match=r'x\.json .* no list of'):
        CocoFile('[]', 'x.json')
