"""Sizes, offsets and pixels by hand and against Pillow; image, labels and segments together."""

from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image

from mmseg_m2f.adapters.data import (
    FixedSizeCrop,
    LoadSegments,
    PadToSize,
    PanopticDataset,
    RandomCrop,
    RandomFlip,
    ResizeScale,
    ResizeShortestEdge,
)
from mmseg_m2f.adapters.data.resizing import Box, resized_image
from mmseg_m2f.registry import TRANSFORMS
from tests.adapters.data import scenes

COCO = Path(__file__).parents[3] / 'data/tiny/coco'
PHOTOS = sorted((COCO / 'img/train').glob('*.jpg'))[:4]


@pytest.fixture(autouse=True)
def numpy_seed():
    np.random.seed(0)


def coordinates(height, width):
    """Make an image whose pixels hold their row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)


def labeled(img, labels):
    return {'img': img, 'gt_seg_map': labels, 'seg_fields': ['gt_seg_map']}


def scaled(scale, target):
    return ResizeScale(scale, scale, target)


@pytest.mark.parametrize(
    ('resize', 'size', 'expected'),
    [
        (scaled(0.5, (1024, 1024)), (480, 640), (384, 512)),  # 512 / 640 = 0.8
        (scaled(2.0, (1024, 1024)), (480, 640), (1536, 2048)),
        (scaled(1.0, (1024, 1024)), (640, 480), (1024, 768)),
        (scaled(0.1, (1024, 1024)), (333, 500), (68, 102)),  # 102.4 / 500 * 333 = 68.2
        (scaled(1.0, (50, 200)), (100, 100), (50, 50)),
        (
            scaled(1.0, (5, 5)),
            (4, 8),
            (2, 5),
        ),  # 4 * 5 / 8 = 2.5, to the even number as numpy rounds
        (scaled(0.1, (100, 100)), (2, 300), (1, 10)),  # 0.07 would be nothing
        (ResizeShortestEdge(512, 2048), (480, 640), (512, 683)),  # 512 / 480 * 640 = 682.67
        (ResizeShortestEdge(512, 2048), (640, 480), (683, 512)),
        (ResizeShortestEdge(512, 2048), (100, 1000), (205, 2048)),  # 204.8
        (ResizeShortestEdge(512, 800), (300, 500), (480, 800)),  # 512 would make it 853
        (ResizeShortestEdge([256], 2048), (300, 300), (256, 256)),
        (ResizeShortestEdge(1, 9), (2, 5), (1, 3)),  # 2.5 rounds up
    ],
)
def test_sizes_by_hand(resize, size, expected):
    results = resize.transform(scenes.instance_record([], np.zeros((*size, 3), np.uint8)))
    assert results['img'].shape[:2] == results['img_shape'] == expected
    assert results['gt_segments'].size == expected
    assert results['scale_factor'] == (expected[1] / size[1], expected[0] / size[0])


def test_label_maps_follow_the_floor_rule():
    # 5 -> 2: source pixels floor(0 * 2.5) = 0 and floor(1 * 2.5) = 2; Pillow would take 1 and 3.
    labels = np.arange(5, dtype=np.uint8)[None].repeat(5, 0)
    results = labeled(np.zeros((5, 5, 3), np.uint8), labels)
    results = ResizeShortestEdge(scale=2, max_size=10).transform(results)
    assert results['gt_seg_map'].tolist() == [[0, 2], [0, 2]]


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_the_filter_smooths_when_it_shrinks_or_reads_the_two_pixels_between(backend):
    # Of 8 pixels to 2: OpenCV reads halfway between 1 and 2, and between 5 and 6.
    row = np.array([255, 0, 0, 255, 255, 0, 0, 255], np.uint8)
    image = np.broadcast_to(row[None, :, None], (8, 8, 3)).copy()
    resize = ResizeShortestEdge(scale=2, max_size=9, backend=backend)
    pixels = resize.transform({'img': image})['img']
    assert pixels.shape == (2, 2, 3)
    assert (pixels == 0).all() if backend == 'cv2' else (pixels > 80).all()
    assert f"backend='{backend}'" in repr(resize)


def test_resize_scale_draws_between_its_limits():
    resize, image = ResizeScale(0.1, 2.0, (100, 100)), np.zeros((50, 50, 3), np.uint8)
    sizes = [resize.transform({'img': image})['img'].shape[0] for _ in range(200)]
    assert 10 <= min(sizes) < 20
    assert 190 < max(sizes) <= 200
    assert np.mean(sizes) == pytest.approx(105, abs=15)


def offsets_of(transform, size, number=300):
    found = [transform.transform({'img': coordinates(*size)})['img'][0, 0] for _ in range(number)]
    return np.array(found, int)[:, :2]


def test_shared_offsets_lie_on_the_diagonal_and_independent_ones_do_not():
    # Room for 40 rows and 80 columns.
    offsets = offsets_of(FixedSizeCrop((60, 70)), (100, 150))
    assert (np.abs(2 * offsets[:, 0] - offsets[:, 1]) <= 1).all()
    independent = offsets_of(FixedSizeCrop((60, 70), offsets='independent'), (100, 150))
    assert abs(np.corrcoef(independent.T)[0, 1]) < 0.2
    for found in (offsets, independent):
        assert (found.min(axis=0) < 4).all()
        assert (found.max(axis=0) > (36, 76)).all()


def test_random_crop_reaches_every_offset_and_leaves_smaller_sides():
    offsets = offsets_of(RandomCrop((5, 6)), (8, 9))
    assert {tuple(offset) for offset in offsets} == {(y, x) for y in range(4) for x in range(4)}
    results = scenes.instance_record([(0, 0, 30, 8)], coordinates(8, 30))
    results = RandomCrop((20, 5)).transform(results)
    assert results['img'].shape[:2] == results['img_shape'] == results['gt_segments'].size == (8, 5)


def test_fixed_size_crop_pads_what_is_smaller():
    # 30 x 100 to 50 x 40: rows are padded, columns cropped.
    results = scenes.instance_record([(0, 0, 100, 40)], coordinates(30, 100))
    results = FixedSizeCrop((50, 40)).transform(results)
    img, mask = results['img'], results['gt_segments'].masks()[0]
    assert img.shape[:2] == results['img_shape'] == results['pad_shape'] == (50, 40)
    assert (img[30:] == 128).all()
    x = int(img[0, 0, 1])
    assert (img[:30] == coordinates(30, 100)[:, x : x + 40]).all()
    # The annotation reaches beyond the image, but not into the padding.
    assert mask[:30].all()
    assert not mask[30:].any()
    black = FixedSizeCrop((50, 40), pad_value=0).transform({'img': coordinates(30, 9) + 9})['img']
    assert (black[30:] == 0).all()


def test_pad_to_size():
    results = scenes.instance_record([(0, 0, 9, 4)], coordinates(4, 9))
    results = PadToSize((6, 9)).transform(results)
    assert (results['img'][4:] == 128).all()
    assert (results['img'][:4] == coordinates(4, 9)).all()
    assert results['gt_segments'].masks()[0].all(axis=1).tolist() == [True] * 4 + [False] * 2
    with pytest.raises(ValueError, match=r'got an image of \(6, 9\) .*a\.jpg.* Crop to at most'):
        PadToSize((6, 8)).transform(results)


def test_random_flip():
    image = coordinates(4, 6)
    flipped = RandomFlip(1.0).transform(scenes.instance_record([(0, 0, 2, 4)], image))
    assert (flipped['img'] == image[:, ::-1]).all()
    assert (flipped['flip'], flipped['flip_direction']) == (True, 'horizontal')
    assert flipped['gt_segments'].masks()[0].any(axis=0).tolist() == [False] * 4 + [True] * 2
    same = RandomFlip(0.0).transform({'img': image})
    assert (same['img'] == image).all()
    assert (same['flip'], same['flip_direction']) == (False, None)
    flips = [RandomFlip().transform({'img': image})['flip'] for _ in range(400)]
    assert 160 < sum(flips) < 240


@pytest.mark.parametrize(
    'transform',
    [
        RandomFlip(1.0),
        RandomCrop((1, 1)),
        FixedSizeCrop((1, 3), pad_value=65, seg_pad_value=65),
        PadToSize((3, 2), pad_value=255),
    ],
)
def test_label_maps_move_with_the_image(transform):
    pixels = np.array([[0, 1], [2, 3]], np.uint8)
    results = transform.transform(labeled(pixels, pixels))
    assert results['gt_seg_map'].tolist() == results['img'].tolist() != pixels.tolist()


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
        results = Compose(PIPELINES[name])(scenes.instance_record([BRIGHT], image))
        mask, bright = results['gt_segments'].masks()[0], results['img'][..., 0]
        bright = (bright > 125) & (bright != 128)
        perimeter = 4 * np.sqrt(mask.sum()) + 1
        assert (mask != bright).sum() <= 1.1 * perimeter
        num_seen += mask.sum() > 100
    assert num_seen > 20


def whole(img, size):
    return np.array(Image.fromarray(img).resize(size[::-1], Image.Resampling.BILINEAR))


def boxes(size, number, seed=0):
    """The whole image, its last pixel, and random boxes."""
    height, width = size
    yield Box(0, 0, width, height)
    yield Box(width - 1, height - 1, 1, 1)
    generator = np.random.default_rng(seed)
    for _ in range(number):
        y, x = (int(generator.integers(length)) for length in size)
        rows, columns = (int(generator.integers(1, n + 1)) for n in (height - y, width - x))
        yield Box(x, y, columns, rows)


def test_two_pixels_become_four():
    # The centers of the four lie at -0.25, 0.25, 0.75 and 1.25 of the two, and nothing beyond the
    # edge counts: 0, 100 / 4, 300 / 4, 100.
    img = np.array([[0, 100]], np.uint8)
    assert resized_image(img, (1, 4), Box(1, 0, 2, 1)).tolist() == [[25, 75]]
    assert resized_image(img.T, (4, 1), Box(0, 2, 1, 2)).tolist() == [[75], [100]]


@pytest.mark.parametrize('factor', [0.1, 0.5, 1, 1.01, 1.4, 2, 3.7])
@pytest.mark.parametrize('path', PHOTOS, ids=lambda path: path.stem)
def test_parts_of_photos_are_bit_for_bit_those_of_the_whole(path, factor):
    img = np.asarray(Image.open(path).convert('RGB'))
    size = round(img.shape[0] * factor), round(img.shape[1] * factor)
    expected = whole(img, size)
    for box in boxes(size, 6):
        part = resized_image(img, size, box)
        assert part.shape == (box.height, box.width, 3)
        assert (part == expected[box.y :, box.x :][: box.height, : box.width]).all()
        assert part.flags.writeable


def test_any_shape_may_become_any_other():
    generator = np.random.default_rng(0)
    for number in range(150):
        old, size = (tuple(generator.integers(1, 60, 2).tolist()) for _ in range(2))
        img = generator.integers(0, 256, old if number % 3 == 0 else (*old, 3), np.uint8)
        expected = whole(img, size)
        for box in boxes(size, 2, seed=number):
            part = resized_image(img, size, box)
            assert (part == expected[box.y :, box.x :][: box.height, : box.width]).all()


LSJ = {'type': 'mmseg_m2f.ResizeScale', 'min_scale': 0.1, 'max_scale': 2, 'target_size': (400, 500)}
SHORT_EDGE = {'type': 'mmseg_m2f.ResizeShortestEdge', 'scale': [100, 300, 700], 'max_size': 900}
CROP = {'type': 'mmseg_m2f.RandomCrop', 'crop_size': (256, 300)}
FIXED = {'type': 'mmseg_m2f.FixedSizeCrop', 'crop_size': (400, 500)}
PAIRS = {
    'large scale jitter': (LSJ, FIXED),
    'independent offsets': (LSJ, {**FIXED, 'offsets': 'independent'}),
    'short edge': (SHORT_EDGE, CROP),
    'opencv': ({**SHORT_EDGE, 'backend': 'cv2'}, CROP),
}


def both(one_step, two_steps, results, seed):
    """The results of both pipelines from the same draws, and the next number drawn after each."""
    for steps in (one_step, two_steps):
        np.random.seed(seed)
        found = Compose(steps)(dict(results))
        yield found, np.random.uniform()


@pytest.mark.parametrize('name', PAIRS)
def test_one_step_gives_what_two_steps_give(name):
    resize, crop = PAIRS[name]
    dataset = PanopticDataset(
        ann_file=str(COCO / 'annotations/panoptic_train.json'),
        data_prefix={'img': str(COCO / 'img/train'), 'seg': str(COCO / 'panoptic/train')},
    )
    load = Compose([{'type': 'LoadImageFromFile'}, LoadSegments()])
    one_step = [{'type': 'mmseg_m2f.ResizeAndCrop', 'resize': resize, 'crop': crop}]
    for seed in range(10):
        record = load(dataset.get_data_info(seed % 4))
        (found, after), (expected, after_two) = both(one_step, [resize, crop], record, seed)
        assert after == after_two
        assert (found.pop('img') == expected.pop('img')).all()
        segments, expected_segments = found.pop('gt_segments'), expected.pop('gt_segments')
        assert (segments.index_map() == expected_segments.index_map()).all()
        assert found == expected


def test_it_draws_and_crops_as_mmcv_and_mmseg_do():
    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    choice = {'type': 'RandomChoiceResize', 'scales': SHORT_EDGE['scale'], 'max_size': 900}
    choice['resize_type'] = 'mmseg_m2f.ResizeShortestEdge'
    two_steps = [choice, {**CROP, 'type': 'RandomCrop'}]
    one_step = {'type': 'mmseg_m2f.ResizeAndCrop', 'resize': SHORT_EDGE, 'crop': CROP}
    img = np.asarray(Image.open(PHOTOS[0]).convert('RGB'))
    labels = np.arange(img[..., 0].size).reshape(img.shape[:2])
    for seed in range(8):
        record = labeled(img, labels)
        (found, after), (expected, after_two) = both([one_step], two_steps, record, seed)
        assert after == after_two
        for key in ('img', 'gt_seg_map', 'img_shape', 'scale_factor'):
            assert np.array_equal(found[key], expected[key])


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('ResizeScale', {'min_scale': 2, 'max_scale': 1, 'target_size': (8, 8)}, 'min_scale'),
        ('ResizeScale', {'min_scale': 1, 'max_scale': 1, 'target_size': 8}, r'\(height, width\)'),
        ('ResizeShortestEdge', {'scale': 2, 'max_size': 9, 'backend': 'cv'}, "backend .* got 'cv'"),
        ('FixedSizeCrop', {'crop_size': (8, 8), 'offsets': 'both'}, "'shared' or 'independent'"),
        ('RandomCrop', {'crop_size': (0, 8)}, r'crop_size must be \(height, width\)'),
        ('RandomFlip', {'prob': 1.5}, 'prob must be from 0 to 1, got 1.5'),
        ('PadToSize', {'size': 8}, r'size must be \(height, width\) in pixels, got 8'),
        ('ResizeAndCrop', {'resize': CROP, 'crop': CROP}, 'resize must be our ResizeShortestEdge'),
        ('ResizeAndCrop', {'resize': SHORT_EDGE, 'crop': SHORT_EDGE}, 'crop must be our RandomCr'),
    ],
)
def test_wrong_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build({'type': f'mmseg_m2f.{name}', **settings})
