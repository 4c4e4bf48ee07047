import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmseg_m2f.evaluation.coco_file import CocoFile
from mmseg_m2f.evaluation.instance_ap import (
    ImageInstances,
    instance_scores,
    predicted_instances,
    true_instances,
)
from mmseg_m2f.evaluation.panoptic_map import AnnotatedSegments
from mmseg_m2f.evaluation.rle import encode_masks

ANN_FILE = Path(__file__).parents[2] / 'data/tiny/coco/annotations/instances_val.json'
NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def guesses(random: np.random.Generator, file: CocoFile, image_id: int) -> list[dict]:
    """Move the true masks, change the class of some, and give several the same score."""
    ids = sorted(file.categories)
    listed = []
    for instance in file.instances.get(image_id, []):
        mask = coco_mask.decode(instance['segmentation']).astype(bool)
        for _ in range(random.integers(0, 3)):
            moved = np.roll(mask, random.integers(-4, 5, 2), (0, 1))
            label = ids.index(instance['category_id'])
            if random.random() < 0.1:
                label = int(random.integers(len(ids)))
            score = np.array([random.integers(0, 10) / 10])
            listed += predicted_instances(moved[None], np.array([label]), score, ids)
    return listed


@pytest.fixture(scope='module')
def coco() -> tuple[CocoFile, dict[int, list[dict]]]:
    file = CocoFile.parse(ANN_FILE.read_bytes(), str(ANN_FILE))
    random = np.random.default_rng(0)
    return file, {image_id: guesses(random, file, image_id) for image_id in file.sizes}


def images(file: CocoFile, predicted: dict, category_ids) -> list[ImageInstances]:
    return [
        ImageInstances(
            image_id=image_id,
            size=size,
            predicted=predicted[image_id],
            true=file.true_instances(image_id, size, category_ids),
        )
        for image_id, size in file.sizes.items()
    ]


def pycocotools_says(predicted: dict, category_ids) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ANN_FILE))
        results = [
            {'image_id': image_id, **instance}
            for image_id, instances in predicted.items()
            for instance in instances
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), 'segm')
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_equals_pycocotools_to_the_last_bit(coco):
    file, predicted = coco
    ids = sorted(file.categories)
    expected = pycocotools_says(predicted, ids)
    # No metric is trivially 0 or undefined.
    assert (expected.stats[:6] > 0).all()
    # The order of images and classes must not matter.
    shuffled = np.random.default_rng(1).permutation(ids).tolist()
    scores = instance_scores(images(file, predicted, ids)[::-1], shuffled)
    assert list(scores.average) == list(NAMES)
    assert list(scores.average.values()) == expected.stats[:6].tolist()
    precision = expected.eval['precision'][..., 0, -1]
    for row, category_id in zip(scores.per_class, shuffled, strict=True):
        of_class = precision[:, :, ids.index(category_id)]
        assert row[0] == of_class.mean()
        assert row[1] == of_class[0].mean()


def test_only_the_given_classes_and_the_best_instances_count(coco):
    file, predicted = coco
    people = pycocotools_says(predicted, [1])
    scores = instance_scores(images(file, predicted, [1]), [1], max_dets=1)
    # The first of pycocotools' three limits is one instance.
    precision = people.eval['precision'][:, :, :, 0, 0]
    assert scores.average['mAP'] == precision[precision > -1].mean()


def test_perfect_is_1_and_nothing_is_0(coco):
    file, _ = coco
    ids = sorted(file.categories)
    perfect = {
        image_id: [
            {'category_id': i['category_id'], 'segmentation': i['segmentation'], 'score': 1.0}
            for i in file.instances.get(image_id, [])
            if not i['iscrowd']
        ]
        for image_id in file.sizes
    }
    scores = instance_scores(images(file, perfect, ids), ids)
    assert scores.average == pytest.approx(dict.fromkeys(NAMES, 1))
    nothing = instance_scores(images(file, dict.fromkeys(file.sizes, ()), ids), ids)
    assert nothing.average == dict.fromkeys(NAMES, 0.0)
    occurring = {
        instance['category_id'] for listed in file.instances.values() for instance in listed
    }
    assert set(nothing.per_class[np.isin(ids, list(occurring)), 0]) == {0.0}
    assert set(nothing.per_class[~np.isin(ids, list(occurring)), 0]) == {-1.0}


def square(left: int, width: int, size=(60, 80)) -> np.ndarray:
    mask = np.zeros((1, *size), bool)
    mask[0, 10:50, left : left + width] = True
    return mask


def image(true: np.ndarray, predicted: np.ndarray, image_id=1) -> ImageInstances:
    truth = AnnotatedSegments(true[0].astype(np.int32), np.zeros(1, int), np.zeros(1, bool))
    return ImageInstances(
        image_id=image_id,
        size=true.shape[1:],
        predicted=predicted_instances(predicted, np.zeros(1, int), np.ones(1), [5]),
        true=true_instances(truth, np.ones(1, bool), [5]),
    )


@pytest.mark.parametrize('faster', [False, True])
def test_an_area_nobody_has_is_minus_1(faster):
    """40 x 40 pixels are COCO's medium. 32 of 40 columns: IoU 0.8, seven of ten thresholds."""
    if faster:
        pytest.importorskip('faster_coco_eval')
    scores = instance_scores([image(square(10, 40), square(10, 32))], [5], faster=faster)
    assert scores.average == pytest.approx(
        {'mAP': 0.7, 'mAP_50': 1, 'mAP_75': 1, 'mAP_s': -1, 'mAP_m': 0.7, 'mAP_l': -1}
    )


def test_boundaries_are_stricter():
    """An image with a diagonal of 100: boundaries are 2 pixels wide (2 % of it).

    The truth's is 40 x 40 - 36 x 36 = 304 pixels, that of the predicted 40 x 32 ones 272. They
    share the left side (80), and of top and bottom 4 x 30 pixels: an IoU of 200 / 376, where the
    masks have 0.8. One threshold of ten is passed.
    """
    pytest.importorskip('faster_coco_eval')
    listed = [image(square(10, 40), square(10, 32))]
    scores = instance_scores(listed, [5], iou_type='boundary', faster=True)
    assert scores.average['mAP'] == pytest.approx(0.1)


def test_things_among_panoptic_segments():
    segment_map = np.zeros((4, 6), np.int32)
    segment_map[:, :2], segment_map[0, 2:5], segment_map[3, 5] = 1, 2, 3
    truth = AnnotatedSegments(
        segment_map, np.array([2, 0, 0, 1]), np.array([False, False, True, False])
    )
    # Class 2 is stuff, and the only segment of class 1 has no pixel.
    instances = true_instances(truth, np.array([True, True, False]), [11, 12, 13])
    assert [(i['category_id'], i['area'], i['iscrowd']) for i in instances] == [
        (11, 3, 0),
        (11, 1, 1),
    ]
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
    return CocoFile.parse(json.dumps(content), 'x.json')


@pytest.mark.parametrize(
    'shape', [[[0, 0, 4, 0, 4, 3, 0, 3]], {'size': [5, 6], 'counts': [0, 3, 2, 3, 2, 3, 2, 3, 12]}]
)
def test_what_a_file_leaves_out_is_filled_in(shape):
    categories = [{'id': 4, 'name': 'y'}, {'id': 3, 'name': 'x'}]
    instance = {'id': 0, 'segmentation': shape}
    file = parsed(instance, {**instance, 'category_id': 4}, categories=categories)
    [true] = file.true_instances('a', (5, 6), [3])
    assert (true['category_id'], true['area'], true['iscrowd']) == (3, 12, 0)
    # An id of 0 is a match like any other.
    mask = np.zeros((1, 5, 6), bool)
    mask[0, :3, :4] = True
    predicted = predicted_instances(mask, np.zeros(1, int), np.ones(1), [3])
    listed = [ImageInstances(image_id='a', size=(5, 6), predicted=predicted, true=[true])]
    assert instance_scores(listed, [3]).average['mAP'] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"no image with the id 'b'.*ann_file"):
        file.true_instances('b', (5, 6), [3])
    with pytest.raises(ValueError, match=r'\(6, 5\) pixels .*x\.json says \(5, 6\)'):
        file.true_instances('a', (6, 5), [3])


def test_shapes_without_an_area_are_no_truth():
    """These are a polygon of two points, no polygon, null; also null as area and iscrowd."""
    shapes = [[[1, 1, 2, 2]], [], None, [[1, 1, 2, 2], [0, 0, 4, 0, 4, 3, 0, 3]]]
    file = parsed(*({'segmentation': s, 'area': None, 'iscrowd': None} for s in shapes))
    [true] = file.true_instances('a', (5, 6), [3])
    assert true['segmentation'] == shapes[3][1:]
    assert (true['area'], true['iscrowd']) == (12, 0)


@pytest.mark.parametrize(
    ('segmentation', 'others', 'message'),
    [
        (None, {'annotations': None}, r"no list of \['annotations'\]"),
        (None, {'annotations': [7]}, 'the annotation 7 is no object'),
        ([1, 1, 5, 1, 5, 5], {}, 'list of polygons'),
        ('abc', {}, 'list of polygons'),
        (
            {'size': [6, 5], 'counts': [30]},
            {},
            r"a mask of image 'a' is of size \(6, 5\) .* of \(5, 6\)",
        ),
        (None, {'categories': [{'id': '3', 'name': 'x'}]}, "'x' is '3'; .* whole numbers"),
        (None, {'images': [{'id': [1], 'height': 5, 'width': 6}]}, 'an id'),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(segmentation, others, message):
    with pytest.raises(ValueError, match=rf'x\.json.*{message}'):
        parsed({'segmentation': segmentation}, **others)


def test_a_list_is_no_file_of_coco():
    with pytest.raises(ValueError, match=r'x\.json .* no list of'):
        CocoFile.parse('[]', 'x.json')
