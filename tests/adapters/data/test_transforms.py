"""Sizes, offsets and pixels by hand and against Pillow; image, labels and segments together."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import Compose
from PIL import Image

from mmseg_m2f.adapters.data import (
    FixedSizeCrop,
    LoadSegments,
    PadToSize,
    PanopticDataset,
    PhotoMetricDistortion,
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
    resize = ResizeScale(0.1, 2.0, (100, 100))
    sizes = [resize.draw_size((50, 50))[0] for _ in range(200)]
    assert 10 <= min(sizes) < 20
    assert 190 < max(sizes) <= 200
    assert np.mean(sizes) == pytest.approx(105, abs=15)


def offsets_of(crop, size):
    """Draw offsets (y, x)."""
    return np.array([crop.draw_box(size)[:2] for _ in range(300)])[:, ::-1]


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
    assert {*map(tuple, offsets.tolist())} == {(y, x) for y in range(4) for x in range(4)}
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
    with pytest.raises(ValueError, match=r'got an image of \(50, 40\) .*a\.jpg.* Crop to at most'):
        PadToSize((60, 30)).transform(results)


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


def check_parts(img, size, seed, number):
    """Compare the whole image, its last pixel, and random boxes."""
    height, width = size
    expected = np.array(Image.fromarray(img).resize((width, height), Image.Resampling.BILINEAR))
    boxes = [Box(0, 0, width, height), Box(width - 1, height - 1, 1, 1)]
    generator = np.random.default_rng(seed)
    for _ in range(number):
        y, x = (int(generator.integers(length)) for length in size)
        rows, columns = (int(generator.integers(1, n + 1)) for n in (height - y, width - x))
        boxes.append(Box(x, y, columns, rows))
    for box in boxes:
        part = resized_image(img, size, box)
        assert np.array_equal(part, expected[box.y :, box.x :][: box.height, : box.width])
        assert part.flags.writeable


@pytest.mark.parametrize('factor', [0.1, 0.5, 1, 1.01, 1.4, 2, 3.7])
@pytest.mark.parametrize('path', PHOTOS, ids=lambda path: path.stem)
def test_parts_of_photos_are_bit_for_bit_those_of_the_whole(path, factor):
    img = np.asarray(Image.open(path).convert('RGB'))
    size = round(img.shape[0] * factor), round(img.shape[1] * factor)
    check_parts(img, size, seed=0, number=6)


def test_any_shape_may_become_any_other():
    generator = np.random.default_rng(0)
    for number in range(150):
        old, size = (tuple(generator.integers(1, 60, 2).tolist()) for _ in range(2))
        img = generator.integers(0, 256, old if number % 3 == 0 else (*old, 3), np.uint8)
        check_parts(img, size, seed=number, number=2)


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
        np.random.seed(seed)
        found, after = Compose(one_step)(dict(record)), np.random.uniform()
        np.random.seed(seed)
        expected = Compose([resize, crop])(dict(record))
        assert after == np.random.uniform()
        assert (found.pop('img') == expected.pop('img')).all()
        segments, expected_segments = found.pop('gt_segments'), expected.pop('gt_segments')
        assert (segments.index_map() == expected_segments.index_map()).all()
        assert found == expected


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


# The coins: brightness; contrast first; contrast if first; saturation; hue; contrast if last.
@pytest.mark.parametrize(
    ('integers', 'numbers', 'before', 'after'),
    [
        ([0, 1, 0, 0, 0], [], (250, 0, 77), (250, 0, 77)),
        # Brightness is added and cut off.
        ([1, 1, 0, 0, 0], [20.7], (0, 100, 240), (20, 120, 255)),
        ([1, 1, 0, 0, 0], [-20.5], (0, 100, 240), (0, 79, 219)),
        # Contrast comes after brightness or at the end; the hue of a gray does not matter.
        ([1, 1, 1, 0, 0], [20, 1.5], (100, 10, 200), (180, 45, 255)),
        ([1, 0, 0, 1, 5, 1], [20, 0.5], (100, 100, 100), (60, 60, 60)),
        # Pure red of 200: at half the saturation (127 of 255) blue and green become 200 * 128/255.
        ([0, 1, 0, 1, 0], [0.5], (0, 0, 200), (100, 100, 200)),
        ([0, 1, 0, 1, 0], [1.5], (0, 0, 200), (0, 0, 200)),
        ([0, 1, 0, 1, 0], [1.5], (80, 80, 80), (80, 80, 80)),
        # A hue of 18 is 36 degrees: red turns towards yellow, with green at 36 / 60 of 200. Back by
        # as much it passes 0 and turns towards violet.
        ([0, 1, 0, 0, 1, 18], [], (0, 0, 200), (0, 120, 200)),
        ([0, 1, 0, 0, 1, -18], [], (0, 0, 200), (120, 0, 200)),
    ],
)
def test_colors_by_hand(monkeypatch, integers, numbers, before, after):
    # Coins and hue come from ``randint``, the rest from ``uniform``.
    for name, values in (('randint', iter(integers)), ('uniform', iter(numbers))):
        monkeypatch.setattr(np.random, name, lambda *_, values=values: next(values))
    img = np.array([[before]], np.uint8)
    result = PhotoMetricDistortion().transform({'img': img})['img']
    assert result.dtype == np.uint8
    assert result.tolist() == [[list(after)]]


def coin():
    return bool(np.random.randint(2))


def linear(values, alpha, beta):
    changed = values.astype(np.float32) * np.float32(alpha) + np.float32(beta)
    return changed.clip(0, 255).astype(np.uint8)


def contrast(img):
    return linear(img, np.random.uniform(0.5, 1.5), 0) if coin() else img


def in_full(img):
    """Apply every step to every pixel, with the draws in the same order."""
    if coin():
        img = linear(img, 1, np.random.uniform(-32, 32))
    contrast_first = coin()
    if contrast_first:
        img = contrast(img)
    saturation = np.random.uniform(0.5, 1.5) if coin() else None
    hue = np.random.randint(-18, 19) if coin() else 0
    if saturation is not None:
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = linear(hsv[..., 1], saturation, 0)
        img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if hue:
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return img if contrast_first else contrast(img)


def test_tables_give_what_arithmetic_on_every_pixel_gives():
    # A crop, whose rows do not follow each other in memory.
    img = cv2.imread(str(PHOTOS[0]))[20:150, 30:200]
    before = img.copy()
    for seed in range(64):
        np.random.seed(seed)
        expected, state = in_full(img), np.random.uniform()
        np.random.seed(seed)
        result = PhotoMetricDistortion().transform({'img': img})['img']
        assert (result == expected).all()
        assert np.random.uniform() == state
    assert (img == before).all()
