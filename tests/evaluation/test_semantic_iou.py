import numpy as np
import pytest

from mmseg_m2f.evaluation.semantic_iou import NO_CLASS, class_areas, semantic_quality
from mmseg_m2f.evaluation.summary import mean_of_defined, text_table


def test_numbers_worked_out_by_hand():
    """Class 0 has 3 of 4 pixels right and one too many, class 1 one of two; 2 is only predicted."""
    truth = np.array([[0, 0, 0, 0], [1, 1, NO_CLASS, NO_CLASS]])
    predicted = np.array([[0, 0, 0, 2], [1, 0, 3, 0]])
    iou, accuracy, pixel_accuracy = semantic_quality(class_areas(truth, predicted, 4))
    np.testing.assert_allclose(iou, [3 / 5, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(accuracy, [3 / 4, 1 / 2, np.nan, np.nan])
    assert pixel_accuracy == 4 / 6
    assert mean_of_defined(iou) == pytest.approx((3 / 5 + 1 / 2) / 3)
    iou, _, pixel_accuracy = semantic_quality(class_areas(truth[:, :0], truth[:, :0], 2))
    assert (pixel_accuracy, mean_of_defined(iou)) == (0, 0)


def test_equals_mmseg():
    torch = pytest.importorskip('torch')
    metrics = pytest.importorskip('mmseg.evaluation')
    random = np.random.default_rng(0)
    ours, theirs = 0, metrics.IoUMetric()
    theirs.dataset_meta = {'classes': list('abcdefg')}
    for _ in range(5):
        # Some of the 7 classes are only true, some only predicted, and the last is neither.
        truth, predicted = random.integers(0, 5, (9, 11)), random.integers(1, 6, (9, 11))
        truth[random.random(truth.shape) < 0.2] = NO_CLASS
        ours = ours + class_areas(truth, predicted, 7)
        sample = {
            'pred_sem_seg': {'data': torch.from_numpy(predicted)},
            'gt_sem_seg': {'data': torch.from_numpy(np.where(truth == NO_CLASS, 255, truth))},
        }
        theirs.process({}, [sample])
    expected = theirs.compute_metrics(theirs.results)
    iou, accuracy, pixel_accuracy = semantic_quality(ours)
    found = [pixel_accuracy, mean_of_defined(iou), mean_of_defined(accuracy)]
    rounded = [expected[name] for name in ('aAcc', 'mIoU', 'mAcc')]  # to two digits
    assert [100 * value for value in found] == pytest.approx(rounded, abs=0.0051)


def test_labels_must_be_classes():
    with pytest.raises(ValueError, match=r'prediction holds labels \[9\], the classes are 0 to 1'):
        class_areas(np.array([[0, 1]]), np.array([[0, 9]]), 2)


def test_tables_align_and_show_nan_as_a_dash():
    rows = [('car', 12.25, 7), ('person', np.nan, 12)]
    assert text_table(('class', 'IoU', 'TP'), rows).split('\n') == [
        'class     IoU  TP',
        '-----------------',
        'car     12.25   7',
        'person      -  12',
    ]
    assert text_table(('class',), []).startswith('class')
