"""The part of a resized image against the same part of Pillow's whole; one step against two."""

from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image

from mmseg_m2f.adapters.data import LoadSegments, PanopticDataset, ResizeAndCrop
from mmseg_m2f.adapters.data.resize_and_crop import Box, resized_image

COCO = Path(__file__).parents[3] / 'data/tiny/coco'
PHOTOS = sorted((COCO / 'img/train').glob('*.jpg'))[:4]


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
PAIRS = {
    'large scale jitter': (LSJ, {'type': 'mmseg_m2f.FixedSizeCrop', 'crop_size': (400, 500)}),
    'independent offsets': (
        LSJ,
        {'type': 'mmseg_m2f.FixedSizeCrop', 'crop_size': (400, 500), 'offsets': 'independent'},
    ),
    'short edge': (SHORT_EDGE, {'type': 'mmseg_m2f.RandomCrop', 'crop_size': (256, 300)}),
    'opencv': (
        {**SHORT_EDGE, 'backend': 'cv2'},
        {'type': 'mmseg_m2f.RandomCrop', 'crop_size': (256, 300)},
    ),
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
    crop = {'type': 'RandomCrop', 'crop_size': (256, 300)}
    choice = {'type': 'RandomChoiceResize', 'scales': SHORT_EDGE['scale'], 'max_size': 900}
    choice['resize_type'] = 'mmseg_m2f.ResizeShortestEdge'
    one_step = {'type': 'mmseg_m2f.ResizeAndCrop', 'resize': SHORT_EDGE}
    one_step['crop'] = {**crop, 'type': 'mmseg_m2f.RandomCrop'}
    img = np.asarray(Image.open(PHOTOS[0]).convert('RGB'))
    labels = np.arange(img[..., 0].size).reshape(img.shape[:2])
    results = {'img': img, 'gt_seg_map': labels, 'seg_fields': ['gt_seg_map']}
    for seed in range(8):
        (found, after), (expected, after_two) = both([one_step], [choice, crop], results, seed)
        assert after == after_two
        for key in ('img', 'gt_seg_map'):
            assert (found[key] == expected[key]).all()
        for key in ('img_shape', 'scale_factor'):
            assert found[key] == expected[key]


@pytest.mark.parametrize(
    ('resize', 'crop', 'message'),
    [
        ({'type': 'mmcv.Resize', 'scale': (9, 9)}, PAIRS['short edge'][1], 'resize must be mmseg_'),
        (SHORT_EDGE, {'type': 'mmseg_m2f.PadToSize', 'size': (9, 9)}, 'crop must be mmseg_m2f.Ran'),
    ],
)
def test_other_transforms_are_refused(resize, crop, message):
    with pytest.raises(ValueError, match=message):
        ResizeAndCrop(resize, crop)
