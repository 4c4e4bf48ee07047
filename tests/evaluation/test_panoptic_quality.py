import numpy as np
import pytest

from mmseg_m2f.evaluation.panoptic_map import AnnotatedSegments, Segments
from mmseg_m2f.evaluation.panoptic_quality import image_statistics, panoptic_quality
from mmseg_m2f.evaluation.summary import mean_of_defined
from tests.evaluation.slow_panoptic import Segment, slow_quality

NUM_CLASSES = 4


def segments(listed: list[Segment], size) -> tuple[np.ndarray, np.ndarray]:
    segment_map = np.zeros(size, np.int32)
    for number, segment in enumerate(listed, 1):
        segment_map[segment.mask] = number
    return segment_map, np.array([segment.label for segment in listed], np.int64)


def statistics(truth: list[Segment], predicted: list[Segment]) -> np.ndarray:
    """Count the sum of IoU, TP, FP and FN per class."""
    size = truth[0].mask.shape
    crowds = np.array([segment.is_crowd for segment in truth], bool)
    true = AnnotatedSegments(*segments(truth, size), crowds)
    return image_statistics(true, Segments(*segments(predicted, size)), NUM_CLASSES)


def row(*lengths: int) -> list[np.ndarray]:
    """Return masks of an image with one row: runs of these lengths, side by side."""
    owner = np.repeat(np.arange(len(lengths)), lengths)[None]
    return [owner == i for i in range(len(lengths))]


def random_scene(random: np.random.Generator):
    """Make six segments of squares, void between them, and predictions moved by a pixel."""
    owner = random.integers(0, 7, (3, 4)).repeat(5, 0).repeat(5, 1)
    moved = np.roll(owner, random.integers(-1, 2), random.integers(2))
    labels = random.integers(0, NUM_CLASSES, 7)
    changed = np.where(random.random(7) < 0.2, random.permutation(labels), labels)
    truth = [Segment(owner == i, labels[i], random.random() < 0.2) for i in range(1, 7)]
    predicted = [Segment(moved == i, changed[i]) for i in range(7) if random.random() < 0.8]
    return tuple([s for s in side if s.mask.any()] for side in (truth, predicted))


def test_equals_the_definition_on_random_scenes():
    random = np.random.default_rng(0)
    num_matches = num_crowds = 0
    for _ in range(60):
        scenes = [random_scene(random) for _ in range(3)]
        quality = panoptic_quality(sum(statistics(*scene) for scene in scenes))
        for chosen in ([0, 1, 2, 3], [0, 1], [3]):
            found = tuple(100 * mean_of_defined(per_class[chosen]) for per_class in quality)
            assert found == pytest.approx(slow_quality(scenes, chosen), abs=1e-6)
        num_matches += sum(statistics(*scene)[1].sum() for scene in scenes)
        num_crowds += sum(segment.is_crowd for truth, _ in scenes for segment in truth)
    # The scenes contain matches and crowds.
    assert num_matches > 200
    assert num_crowds > 50


def test_numbers_worked_out_by_hand():
    """Class 0: true 6 and 4 pixels; predicted 5 of the 6 (IoU 5/6) and one pixel beside (no)."""
    six, four, rest = row(6, 4, 2)
    five, one, _ = row(5, 1, 6)
    truth = [Segment(six, 0), Segment(four, 0), Segment(rest, 1)]
    counts = statistics(truth, [Segment(five, 0), Segment(one, 0), Segment(rest, 1)])
    assert counts[1:, 0].tolist() == [1, 1, 1]
    quality = panoptic_quality(counts)
    np.testing.assert_allclose(quality[:, :2], [[5 / 12, 1], [5 / 6, 1], [1 / 2, 1]])
    assert np.isnan(quality[:, 2:]).all()  # classes 2 and 3 do not occur


def test_an_iou_of_one_half_is_no_match_and_void_does_not_count():
    left, right = row(4, 4)
    both = left | right
    assert statistics([Segment(both, 0)], [Segment(left, 0)])[:, 0].tolist() == [0, 0, 1, 1]
    assert statistics([Segment(left, 0)], [Segment(both, 0)])[:, 0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(('on_void', 'errors'), [(6, 0), (5, 1), (4, 1)])
def test_a_segment_is_no_error_if_more_than_half_of_it_lies_on_void(on_void, errors):
    """The prediction has 10 pixels, and its class does not occur in the truth."""
    before, known, void, _ = row(5 + on_void, 10 - on_void, on_void, 15 - on_void)
    counts = statistics([Segment(before | known, 0)], [Segment(known | void, 1)])
    assert counts[2, 1] == errors


@pytest.mark.parametrize(('crowd_class', 'errors'), [(0, 0), (1, 2)])
def test_crowds_are_not_missed_and_excuse_their_class_only(crowd_class, errors):
    """Two crowds of a class, on each of which lies a prediction of class 0."""
    left, right, rest = row(5, 5, 5)
    crowds = [Segment(mask, crowd_class, is_crowd=True) for mask in (left, right)]
    _, tp, fp, fn = statistics([*crowds, Segment(rest, 2)], [Segment(left, 0), Segment(right, 0)])
    assert fp[0] == errors
    assert fn.tolist() == [0, 0, 1, 0]
    assert tp.sum() == 0


def test_true_areas_are_those_the_file_states():
    # Class 0 states 8 pixels and the map shows 4 of them; class 1 states 3 and shows none.
    shown = np.array([[1, 1, 1, 1, 0, 0, 0, 0]], np.int32)
    truth = AnnotatedSegments(shown, np.array([0, 1]), np.zeros(2, bool), np.array([8, 3]))
    predicted = Segments(shown, np.array([0]))
    # IoU 4 / (4 + 8 - 4) is not above one half.
    expected = [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert image_statistics(truth, predicted, 2).tolist() == expected
    counted = image_statistics(truth._replace(areas=None), predicted, 2)
    assert counted[1:].tolist() == [[1, 0], [0, 0], [0, 0]]
