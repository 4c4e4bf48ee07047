import importlib.util

import numpy as np
import pytest
from PIL import Image

from mmseg_m2f.evaluation import cityscapes_ap
from tests.evaluation import cityscapes_scene as city
from tests.evaluation.cityscapes_scene import BICYCLE, CAR, CARS, NAME, PERSON, PERSONS, SIZE

needs_package = pytest.mark.skipif(
    importlib.util.find_spec('cityscapesscripts') is None, reason='needs cityscapesScripts'
)


def scores(folder, masks, label_ids, confidences):
    image = f'leftImg8bit/val/ulm/{NAME}_leftImg8bit.png'
    truth = cityscapes_ap.truth_file(city.write_truth(folder), image)
    masks, label_ids = np.array(masks).reshape(-1, *SIZE), np.array(label_ids)
    predicted = cityscapes_ap.write_instances(folder / 'out', image, masks, label_ids, confidences)
    return cityscapes_ap.cityscapes_scores(cityscapes_ap.match_image(truth, predicted))


@needs_package
def test_perfect_is_1_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = dict(vars(cityscapes_ap.import_evaluator().args))
    average, per_class = scores(tmp_path, CARS + PERSONS, [CAR, CAR, PERSON], [0.9, 0.8, 0.1])
    assert average == per_class['car'] == (1, 1)
    assert np.isnan(per_class['bicycle']).all()
    assert capsys.readouterr().out == ''
    assert {path.name for path in tmp_path.iterdir()} == {'gtFine', 'out'}
    # The benchmark's format: mask file, label id, score.
    listed = (tmp_path / f'out/{NAME}_pred.txt').read_text().splitlines()
    lines = [line.split(' ') for line in listed]
    assert [line[1:] for line in lines] == [['26', '0.9'], ['26', '0.8'], ['24', '0.1']]
    for (name, *_), mask in zip(lines, CARS + PERSONS, strict=True):
        with Image.open(tmp_path / 'out' / name) as image:
            np.testing.assert_array_equal(image, mask)
    assert vars(cityscapes_ap.import_evaluator().args) == settings
    assert settings['instLabels'] == []


@needs_package
@pytest.mark.parametrize(
    ('masks', 'label_ids', 'expected'),
    [
        # No person found: the mean of 1 and 0.
        (CARS, [CAR, CAR], (0.5, 0.5)),
        # One car of two, precise: 1/2 for cars, 1 for persons.
        ([CARS[0], *PERSONS], [CAR, PERSON], (0.75, 0.75)),
        # 7 of a person's 10 columns: found at the thresholds 0.5 to 0.65, four of ten.
        ([*CARS, city.box(60, 7)], [CAR, CAR, PERSON], (0.7, 1)),
        # The right masks under the wrong classes. There is no true bicycle, so it does not count.
        ([*CARS, *PERSONS], [PERSON, BICYCLE, CAR], (0, 0)),
        ([], [], (0, 0)),
        # An empty mask is no instance.
        ([np.zeros(SIZE, bool)], [CAR], (0, 0)),
    ],
)
def test_known_scores(tmp_path, masks, label_ids, expected):
    average, _ = scores(tmp_path, masks, label_ids, np.full(len(masks), 0.5))
    assert average == pytest.approx(expected)


def test_images_without_truth(tmp_path):
    with pytest.raises(FileNotFoundError, match='gt_dir must be a folder of'):
        cityscapes_ap.truth_file(tmp_path, f'ulm/{NAME}_leftImg8bit.png')
    with pytest.raises(ValueError, match=r'photo\.png is not named as in Cityscapes'):
        cityscapes_ap.truth_file(tmp_path, 'photo.png')
