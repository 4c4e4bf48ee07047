"""Sizes and pixels by hand."""

import numpy as np
import pytest
from PIL import Image

from mmseg_m2f.adapters.data.label_maps import (
    LoadAnnotationsIfAny,
    ResizeShortestEdge,
    shortest_edge_size,
)


@pytest.mark.parametrize(
    ('height', 'width', 'scale', 'max_size', 'expected'),
    [
        (480, 640, 512, 2048, (512, 683)),  # 512 / 480 * 640 = 682.67
        (640, 480, 512, 2048, (683, 512)),
        (100, 1000, 512, 2048, (205, 2048)),  # the long side decides: 204.8
        (300, 500, 512, 800, (480, 800)),  # 512 would make it 853
        (300, 300, 256, 2048, (256, 256)),
        (2, 5, 1, 9, (1, 3)),  # 2.5 rounds up
    ],
)
def test_shortest_edge_size(height, width, scale, max_size, expected):
    assert shortest_edge_size(height, width, scale, max_size) == expected


def test_label_maps_follow_the_floor_rule():
    # 5 -> 2: source pixels floor(0 * 2.5) = 0 and floor(1 * 2.5) = 2; Pillow would take 1 and 3.
    labels = np.arange(5, dtype=np.uint8)[None].repeat(5, 0)
    image = np.zeros((5, 5, 3), np.uint8)
    results = {'img': image, 'gt_seg_map': labels, 'seg_fields': ['gt_seg_map']}
    results = ResizeShortestEdge(scale=2, max_size=10).transform(results)
    assert results['gt_seg_map'].tolist() == [[0, 2], [0, 2]]
    assert results['img_shape'] == results['img'].shape[:2] == (2, 2)
    assert results['scale_factor'] == (0.4, 0.4)


def test_annotations_are_loaded_only_where_there_are_some(tmp_path):
    pytest.importorskip('mmseg')
    load = LoadAnnotationsIfAny()
    assert load({'img_path': 'a.jpg', 'seg_map_path': None}) == {
        'img_path': 'a.jpg',
        'seg_map_path': None,
    }
    assert load({'img_path': 'a.jpg'}) == {'img_path': 'a.jpg'}
    Image.fromarray(np.array([[0, 7], [7, 255]], np.uint8)).save(tmp_path / 'a.png')
    results = {
        'seg_map_path': str(tmp_path / 'a.png'),
        'reduce_zero_label': False,
        'seg_fields': [],
    }
    assert load(results)['gt_seg_map'].tolist() == [[0, 7], [7, 255]]
