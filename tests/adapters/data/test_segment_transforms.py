"""Sizes and offsets by hand; every transform moves image and segments together."""

import numpy as np
import pytest

from mmseg_m2f.adapters.data import FixedSizeCrop, PadToSize, RandomCrop, RandomFlip, ResizeScale
from mmseg_m2f.adapters.data.label_maps import ResizeShortestEdge
from mmseg_m2f.registry import TRANSFORMS
from tests.adapters.data import scenes


@pytest.fixture(autouse=True)
def numpy_seed():
    np.random.seed(0)


def coordinates(height, width):
    """Make an image whose pixels hold their row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)


def record(img, boxes=()):
    return scenes.instance_record(boxes, img)


@pytest.mark.parametrize(
    ('size', 'scale', 'target', 'expected'),
    [
        ((480, 640), 0.5, (1024, 1024), (384, 512)),  # 512 / 640 = 0.8
        ((480, 640), 2.0, (1024, 1024), (1536, 2048)),
        ((640, 480), 1.0, (1024, 1024), (1024, 768)),
        ((333, 500), 0.1, (1024, 1024), (68, 102)),  # 102.4 / 500 * 333 = 68.2
        ((100, 100), 1.0, (50, 200), (50, 50)),
        ((4, 8), 1.0, (5, 5), (2, 5)),  # 4 * 5 / 8 = 2.5, to the even number as numpy rounds
        ((2, 300), 0.1, (100, 100), (1, 10)),  # 0.07 would be nothing
    ],
)
def test_resize_scale_fits_into_the_scaled_target(size, scale, target, expected):
    results = record(np.zeros((*size, 3), np.uint8))
    results = ResizeScale(scale, scale, target).transform(results)
    assert results['img'].shape[:2] == results['img_shape'] == expected
    assert results['gt_segments'].size == expected
    assert results['scale_factor'] == (expected[1] / size[1], expected[0] / size[0])


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('transform', ['ResizeScale', 'ResizeShortestEdge'])
def test_the_filter_smooths_when_it_shrinks_or_reads_the_two_pixels_between(transform, backend):
    # Of 8 pixels to 2: OpenCV reads halfway between 1 and 2, and between 5 and 6.
    row = np.array([255, 0, 0, 255, 255, 0, 0, 255], np.uint8)
    image = np.broadcast_to(row[None, :, None], (8, 8, 3))
    sizes = {'min_scale': 1, 'max_scale': 1, 'target_size': (2, 2)}
    if transform == 'ResizeShortestEdge':
        sizes = {'scale': 2, 'max_size': 9}
    resize = TRANSFORMS.build({'type': f'mmseg_m2f.{transform}', **sizes, 'backend': backend})
    pixels = resize.transform({'img': image.copy()})['img']
    assert pixels.shape == (2, 2, 3)
    if backend == 'cv2':
        assert (pixels == 0).all()
    else:
        assert (pixels > 80).all()
    assert f"backend='{backend}'" in repr(resize)


def test_resize_scale_draws_between_its_limits():
    sizes = []
    for _ in range(200):
        results = ResizeScale(0.1, 2.0, (100, 100)).transform({'img': np.zeros((50, 50, 3), 'u1')})
        sizes.append(results['img'].shape[0])
    assert 10 <= min(sizes) < 20
    assert 190 < max(sizes) <= 200
    assert np.mean(sizes) == pytest.approx(105, abs=15)


def offsets_of(transform, size, number=300):
    found = [transform.transform({'img': coordinates(*size)})['img'][0, 0] for _ in range(number)]
    return np.array(found, int)[:, :2]


def test_shared_offsets_lie_on_the_diagonal():
    # Room for 40 rows and 80 columns.
    offsets = offsets_of(FixedSizeCrop((60, 70)), (100, 150))
    assert (np.abs(2 * offsets[:, 0] - offsets[:, 1]) <= 1).all()
    assert offsets[:, 1].min() < 4
    assert offsets[:, 1].max() > 76


def test_independent_offsets_do_not():
    offsets = offsets_of(FixedSizeCrop((60, 70), offsets='independent'), (100, 150))
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.2
    assert (offsets.min(axis=0) < 4).all()
    assert (offsets.max(axis=0) > (36, 76)).all()


def test_fixed_size_crop_pads_what_is_smaller():
    # 30 x 100 to 50 x 40: rows are padded, columns cropped.
    results = record(coordinates(30, 100), [(0, 0, 100, 40)])
    results = FixedSizeCrop((50, 40)).transform(results)
    img, mask = results['img'], results['gt_segments'].masks()[0]
    assert img.shape == (50, 40, 3)
    assert (img[30:] == 128).all()
    x = int(img[0, 0, 1])
    assert (img[:30] == coordinates(30, 100)[:, x : x + 40]).all()
    # The annotation reaches beyond the image, but not into the padding.
    assert mask[:30].all()
    assert not mask[30:].any()
    assert results['img_shape'] == (50, 40)
    black = FixedSizeCrop((50, 40), pad_value=0).transform({'img': coordinates(30, 9) + 9})['img']
    assert (black[30:] == 0).all()
    assert (black[:, 9:] == 0).all()


def test_random_crop_reaches_every_offset():
    offsets = offsets_of(RandomCrop((7, 17)), (10, 20))
    assert {tuple(offset) for offset in offsets.tolist()} == {
        (y, x) for y in range(4) for x in range(4)
    }


def test_random_crop_leaves_smaller_sides():
    results = RandomCrop((20, 5)).transform(record(coordinates(8, 30), [(0, 0, 30, 8)]))
    assert results['img'].shape == (8, 5, 3)
    assert results['img_shape'] == results['gt_segments'].size == (8, 5)


def test_random_flip():
    image = coordinates(4, 6)
    flipped = RandomFlip(1.0).transform(record(image, [(0, 0, 2, 4)]))
    assert (flipped['img'] == image[:, ::-1]).all()
    assert (flipped['flip'], flipped['flip_direction']) == (True, 'horizontal')
    assert flipped['gt_segments'].masks()[0].any(axis=0).tolist() == [False] * 4 + [True] * 2
    same = RandomFlip(0.0).transform(record(image))
    assert (same['img'] == image).all()
    assert (same['flip'], same['flip_direction']) == (False, None)
    flips = [RandomFlip().transform({'img': image})['flip'] for _ in range(400)]
    assert 160 < sum(flips) < 240


def test_pad_to_size():
    results = PadToSize((6, 9)).transform(record(coordinates(4, 9), [(0, 0, 9, 4)]))
    assert results['img'].shape == (6, 9, 3)
    assert (results['img'][4:] == 128).all()
    assert (results['img'][:4] == coordinates(4, 9)).all()
    assert results['gt_segments'].masks()[0].all(axis=1).tolist() == [True] * 4 + [False] * 2
    with pytest.raises(ValueError, match=r'got an image of \(4, 9\) .*a\.jpg.* Crop to at most'):
        PadToSize((6, 8)).transform(record(coordinates(4, 9)))


BRIGHT = (40, 24, 100, 80)
PIPELINES = {
    'large scale jitter': [
        RandomFlip(0.5),
        ResizeScale(0.1, 2.0, (128, 128)),
        FixedSizeCrop((128, 128)),
    ],
    'shortest edge': [
        ResizeShortestEdge(120, 400),
        RandomCrop((64, 96)),
        RandomFlip(0.5),
        PadToSize((128, 128)),
    ],
}


@pytest.mark.parametrize('name', PIPELINES)
def test_image_and_segments_stay_together(name):
    # A bright square on black. Its mask must follow it, except for pixels at the border.
    image = np.zeros((100, 160, 3), np.uint8)
    x1, y1, x2, y2 = BRIGHT
    image[y1:y2, x1:x2] = 250
    num_seen = 0
    for _ in range(40):
        results = record(image, [BRIGHT])
        for transform in PIPELINES[name]:
            results = transform.transform(results)
        mask, bright = results['gt_segments'].masks()[0], results['img'][..., 0]
        bright = (bright > 125) & (bright != 128)
        perimeter = 4 * np.sqrt(mask.sum()) + 1
        assert (mask != bright).sum() <= 1.1 * perimeter
        num_seen += mask.sum() > 100
    assert num_seen > 20


def test_random_choice_resize_moves_segments():
    choice = TRANSFORMS.build(
        {
            'type': 'RandomChoiceResize',
            'scales': [8],
            'resize_type': 'mmseg_m2f.ResizeShortestEdge',
            'max_size': 12,
        }
    )
    results = choice(record(coordinates(10, 20), [(0, 0, 10, 10)]))
    assert results['img'].shape == (6, 12, 3)
    assert results['gt_segments'].masks()[0].all(axis=0).tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'type': 'ResizeScale', 'min_scale': 2, 'max_scale': 1, 'target_size': (8, 8)}, 'min_sc'),
        (
            {'type': 'ResizeShortestEdge', 'scale': 2, 'max_size': 9, 'backend': 'opencv'},
            r"backend must be one of \('pillow', 'cv2'\), got 'opencv'",
        ),
        ({'type': 'ResizeScale', 'min_scale': 1, 'max_scale': 1, 'target_size': 8}, r'\(height, w'),
        ({'type': 'FixedSizeCrop', 'crop_size': (8, 8), 'offsets': 'both'}, "'shared' or 'indep"),
        ({'type': 'FixedSizeCrop', 'crop_size': (8,)}, r'crop_size must be \(height, width\)'),
        ({'type': 'RandomCrop', 'crop_size': (0, 8)}, r'crop_size must be \(height, width\)'),
        ({'type': 'RandomFlip', 'prob': 1.5}, 'prob must be from 0 to 1, got 1.5'),
        ({'type': 'PadToSize', 'size': 8}, r'size must be \(height, width\) in pixels, got 8'),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build({**settings, 'type': f'mmseg_m2f.{settings["type"]}'})
