from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mmseg_m2f.evaluation.panoptic_map import decode_panoptic, id2rgb, read_ids, read_segments


def png(ids) -> BytesIO:
    file = BytesIO()
    Image.fromarray(id2rgb(np.array(ids))).save(file, format='PNG')
    return file


def test_mmdets_encoding_is_decoded():
    """There are 3 classes: 2 is stuff; things are two of class 0 and one of class 1; 3 is void."""
    encoded = np.array([[3, 2, 2], [1000, 2000, 3001], [1000, 3, 3001]])
    segment_map, labels = decode_panoptic(encoded, 3)
    assert segment_map.dtype == np.int32
    assert segment_map.tolist() == [[0, 1, 1], [2, 3, 4], [2, 0, 4]]
    assert labels.tolist() == [2, 0, 0, 1]
    segment_map, labels = decode_panoptic(np.full((2, 2), 5, np.int32), 5)  # only void
    assert not segment_map.any()
    assert labels.tolist() == []


def test_values_that_no_class_has():
    for value in (4, 1003, -1):
        with pytest.raises(ValueError, match=r'class \d+, the data set has 3 classes|negative'):
            decode_panoptic(np.array([[0, value]]), 3)


def test_colors_and_ids_are_two_writings_of_one_number():
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 256**3 - 1, 1234567]])
    assert id2rgb(ids)[:, 3].tolist() == [[0, 1, 0], [135, 214, 18]]
    np.testing.assert_array_equal(read_ids(png(ids)), ids)
    np.testing.assert_array_equal(id2rgb(ids).astype(int) @ [1, 256, 256**2], ids)


def test_listed_segments_are_read_and_all_else_is_void():
    listed = [
        {'id': 90000, 'label': 2, 'is_crowd': True},
        {'id': 7, 'label': 0, 'is_crowd': False},
        {'id': 8, 'label': 1, 'is_crowd': False},  # has no pixel
    ]
    segments = read_segments(png([[0, 7, 7], [90000, 3, 90000]]), listed)
    assert segments.segment_map.tolist() == [[0, 2, 2], [1, 0, 1]]
    assert segments.labels.tolist() == [2, 0, 1]
    assert segments.is_crowd.tolist() == [True, False, False]


@pytest.mark.parametrize('area', [None, '4', 3, 4.5, float('nan'), -1])
def test_areas_are_counted_unless_those_stated_are_wanted(area):
    ids = [[0, 7, 7], [7, 3, 7]]
    listed = [{'id': i, 'label': 0, 'is_crowd': False, 'area': area} for i in (7, 8)]
    assert read_segments(png(ids), listed).areas is None
    with pytest.raises(ValueError, match=rf'the area {area!r} of segment 7, which has 4 pixels'):
        read_segments(png(ids), listed, stated_areas=True)
    listed = [{**listed[0], 'area': 4.0}, {**listed[1], 'area': 9}]
    assert read_segments(png(ids), listed, stated_areas=True).areas.tolist() == [4, 9]
