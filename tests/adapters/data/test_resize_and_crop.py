"""A part of the resized image against the same part of Pillow's whole."""

from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image

from mmseg_m2f.adapters.data import FixedSizeCrop, ResizeScale
from mmseg_m2f.adapters.data.resize_and_crop import DeferredResize, resized_part

PHOTOS = sorted((Path(__file__).parents[3] / 'data/tiny/coco/img/train').glob('*.jpg'))[:4]


def whole(img, size):
    return np.array(Image.fromarray(img).resize(size[::-1], Image.Resampling.BILINEAR))


def boxes(size, number, seed=0):
    """At random, with one pixel and all of them among them."""
    yield 0, 0, size[1], size[0]
    yield size[1] - 1, size[0] - 1, size[1], size[0]
    generator = np.random.default_rng(seed)
    for _ in range(number):
        y1, x1 = (int(generator.integers(length)) for length in size)
        y2, x2 = (int(generator.integers(a, b)) + 1 for a, b in zip((y1, x1), size, strict=True))
        yield x1, y1, x2, y2


def test_two_pixels_become_four():
    # A centre of the four lies at -0.25, 0.25, 0.75, 1.25 of the two, and nothing beyond the edge
    # counts: 0, 100 / 4, 300 / 4, 100.
    img = np.array([[0, 100]], np.uint8)
    assert resized_part(img, (1, 4), (1, 0, 3, 1)).tolist() == [[25, 75]]
    assert resized_part(img.T, (4, 1), (0, 2, 1, 4)).tolist() == [[75], [100]]


@pytest.mark.parametrize('factor', [0.1, 0.5, 1, 1.01, 1.4, 2, 3.7])
@pytest.mark.parametrize('path', PHOTOS, ids=lambda path: path.stem)
def test_parts_of_photos_are_bit_for_bit_those_of_the_whole(path, factor):
    img = np.asarray(Image.open(path).convert('RGB'))
    size = round(img.shape[0] * factor), round(img.shape[1] * factor)
    expected = whole(img, size)
    for x1, y1, x2, y2 in boxes(size, 6):
        part = resized_part(img, size, (x1, y1, x2, y2))
        assert part.shape == (y2 - y1, x2 - x1, 3)
        assert (part == expected[y1:y2, x1:x2]).all()
        assert part.flags.writeable


def test_any_shape_may_become_any_other():
    generator = np.random.default_rng(0)
    for number in range(150):
        old, size = (tuple(generator.integers(1, 60, 2).tolist()) for _ in range(2))
        img = generator.integers(0, 256, old if number % 3 == 0 else (*old, 3), np.uint8)
        expected = whole(img, size)
        for x1, y1, x2, y2 in boxes(size, 2, seed=number):
            part = resized_part(img, size, (x1, y1, x2, y2))
            assert (part == expected[y1:y2, x1:x2]).all()


def test_it_is_cut_like_an_array():
    img = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    image, expected = DeferredResize(img, (20, 30)), whole(img, (20, 30))
    assert (image.shape, image.ndim, image.dtype) == (expected.shape, 3, np.uint8)
    assert (np.asarray(image) == expected).all()
    assert np.asarray(image, np.float32).dtype == np.float32
    for key in (
        np.s_[3:9, 4:7],
        np.s_[3:9, 4:7, ...],
        np.s_[:, -5:],
        np.s_[15:99, 25:99],
        np.s_[4:2, 0:3],
        np.s_[::2, 1:9],
        np.s_[3:9],
        np.s_[2, 3],
        np.s_[0:4, 0:4, 1],
    ):
        assert image[key].shape == expected[key].shape
        assert (image[key] == expected[key]).all()


@pytest.mark.parametrize('path', PHOTOS, ids=lambda path: path.stem)
def test_large_scale_jitter_gives_the_same_from_the_same_draws(path):
    img = np.asarray(Image.open(path).convert('RGB'))

    def run(seed, deferred):
        np.random.seed(seed)
        resize = ResizeScale(0.1, 2.0, (300, 400), deferred=deferred)
        return FixedSizeCrop((300, 400)).transform(resize.transform({'img': img}))

    for seed in range(8):
        expected, results = run(seed, False), run(seed, True)
        assert (results.pop('img') == expected.pop('img')).all()
        assert results == expected


def test_mmsegs_crop_gives_the_same_from_the_same_draws():
    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    img = np.asarray(Image.open(PHOTOS[0]).convert('RGB'))
    labels = np.arange(img[..., 0].size, dtype=np.uint8).reshape(img.shape[:2]) // 16

    def run(seed, deferred):
        np.random.seed(seed)
        resize = {'type': 'RandomChoiceResize', 'scales': [100, 300, 500], 'max_size': 700}
        resize |= {'resize_type': 'mmseg_m2f.ResizeShortestEdge', 'deferred': deferred}
        crop = {'type': 'RandomCrop', 'crop_size': (256, 256), 'cat_max_ratio': 0.1}
        results = {'img': img, 'gt_seg_map': labels, 'seg_fields': ['gt_seg_map']}
        return Compose([resize, crop])(results)

    for seed in range(6):
        expected, results = run(seed, False), run(seed, True)
        for key in ('img', 'gt_seg_map'):
            assert (results[key] == expected[key]).all()
        assert results['img_shape'] == expected['img_shape'] == results['img'].shape[:2]
