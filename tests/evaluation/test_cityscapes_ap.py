import importlib.util

import numpy as np
import pytest
from PIL import Image

from mmseg_m2f.evaluation import cityscapes_ap
from mmseg_m2f.evaluation.cityscapes_ap import (
    cityscapes_scores,
    match_image,
    truth_file,
    write_instances,
)

ROAD, CAR, PERSON, BICYCLE = 7, 26, 24, 33
SIZE = (40, 80)


needs_package = pytest.mark.skipif(
    importlib.util.find_spec('cityscapesscripts') is None, reason='needs cityscapesScripts'
)


def box(left: int, width: int) -> np.ndarray:
    """Make a mask of 20 rows: true instances below 100 pixels would not count."""
    mask = np.zeros(SIZE, bool)
    mask[10:30, left : left + width] = True
    return mask


CARS = [box(0, 10), box(20, 20)]
PERSONS = [box(60, 10)]


def truth(folder, name='ulm_000001_000019'):
    instance_ids = np.full(SIZE, ROAD, np.uint16)
    for index, mask in enumerate(CARS):
        instance_ids[mask] = 1000 * CAR + index
    for index, mask in enumerate(PERSONS):
        instance_ids[mask] = 1000 * PERSON + index
    path = folder / 'gtFine/val/ulm' / f'{name}_gtFine_instanceIds.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(instance_ids).save(path)
    return truth_file(folder / 'gtFine/val', f'leftImg8bit/val/ulm/{name}_leftImg8bit.png')


def scores(folder, masks, label_ids, confidences):
    masks = np.array(masks).reshape(-1, *SIZE)
    name = 'ulm_000001_000019'
    predicted = write_instances(folder / 'out', name, masks, np.array(label_ids), confidences)
    return cityscapes_scores(match_image(truth(folder), predicted))


@needs_package
def test_perfect_is_1_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = dict(vars(cityscapes_ap.import_evaluator().args))
    result = scores(tmp_path, CARS + PERSONS, [CAR, CAR, PERSON], [0.9, 0.8, 0.1])
    assert (result.ap, result.ap50) == (1, 1)
    assert result.per_class['car'] == (1, 1)
    assert np.isnan(result.per_class['bicycle']).all()
    assert capsys.readouterr().out == ''
    assert {path.name for path in tmp_path.iterdir()} == {'gtFine', 'out'}
    assert vars(cityscapes_ap.import_evaluator().args) == settings
    assert settings['instLabels'] == []


@needs_package
@pytest.mark.parametrize(
    ('masks', 'label_ids', 'ap', 'ap50'),
    [
        # No person found: the mean of 1 and 0.
        (CARS, [CAR, CAR], 0.5, 0.5),
        # One car of two, precise: 1/2 for cars, 1 for persons.
        ([CARS[0], *PERSONS], [CAR, PERSON], 0.75, 0.75),
        # 7 of a person's 10 columns: found at the thresholds 0.5 to 0.65, four of ten.
        ([*CARS, box(60, 7)], [CAR, CAR, PERSON], 0.7, 1),
        # The right masks under the wrong classes. There is no true bicycle, so it does not count.
        ([*CARS, *PERSONS], [PERSON, BICYCLE, CAR], 0, 0),
        ([], [], 0, 0),
        # An empty mask is no instance.
        ([np.zeros(SIZE, bool)], [CAR], 0, 0),
    ],
)
def test_known_scores(tmp_path, masks, label_ids, ap, ap50):
    result = scores(tmp_path, masks, label_ids, np.full(len(masks), 0.5))
    assert (result.ap, result.ap50) == pytest.approx((ap, ap50))


def test_files_of_the_benchmark(tmp_path):
    path = write_instances(
        tmp_path,
        'ulm_000001_000019',
        np.array([CARS[0], PERSONS[0]]),
        np.array([CAR, PERSON]),
        [0.25, 1],
    )
    lines = [line.split(' ') for line in path.read_text().splitlines()]
    assert [(label, float(score)) for _, label, score in lines] == [('26', 0.25), ('24', 1)]
    with Image.open(tmp_path / lines[0][0]) as image:
        np.testing.assert_array_equal(np.asarray(image.convert('L')) > 0, CARS[0])
    assert path.name.startswith('ulm_000001_000019')


@pytest.mark.parametrize(
    ('img_path', 'error', 'message'),
    [
        ('ulm/ulm_000001_000019_leftImg8bit.png', FileNotFoundError, r'gt_dir must be a folder of'),
        ('photo.png', ValueError, r'photo\.png is not named as in Cityscapes'),
    ],
)
def test_images_without_truth(tmp_path, img_path, error, message):
    with pytest.raises(error, match=message):
        truth_file(tmp_path, img_path)
