"""Pipelines of the configs on real images, against Pillow, NumPy and torch used by hand.

What a single transform does with small numbers is tested beside it; here the official steps are
written out anew, in their order, with the draws they make, and each row's pipeline is held to them.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn import functional as F

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmengine.registry import DATASETS, MODELS

from mmseg_m2f.adapters.data import PackSegments, ResizeShortestEdge
from mmseg_m2f.adapters.data.photometric import PhotoMetricDistortion
from mmseg_m2f.adapters.data.segments import SegmentMap
from mmseg_m2f.adapters.models.samples import targets_of
from tests.configs.rows import DETECTOR_ROWS, REPOSITORY, load, parse

TINY = REPOSITORY / 'data/tiny'
PHOTOS = sorted((TINY / 'coco/img/train').glob('*.jpg'))[:6]
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
Record = dict[str, Any]


def pixels_of(path: Path | str) -> np.ndarray:
    """Decode an image as the loader of every config does: blue, green, red."""
    return Compose([{'type': 'LoadImageFromFile'}])({'img_path': str(path)})['img']


def resized(image: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], how))


def round_half_up(value: float) -> int:
    return int(value + 0.5)


def fitted(size: tuple[int, int], short: int, longest: int) -> tuple[int, int]:
    """Return the size with short side ``short``, unless the long side would exceed ``longest``."""
    scale = min(short / min(size), longest / max(size))
    return round_half_up(size[0] * scale), round_half_up(size[1] * scale)


def padded(image: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    canvas = np.full((*size, *image.shape[2:]), value, image.dtype)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def nearest_of_torch(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as detectron2 does: with torch, because Pillow refuses its float64 label maps."""
    values = torch.tensor(label_map, dtype=torch.float64)
    return F.interpolate(values[None, None], size)[0, 0].numpy()


# Short side and limit of the long one of the tests' images.
TEST_SIDES = {
    'mask2former_r50_ade20k': (512, 2048),
    'mask2former_swin-b-in22k_ade20k': (640, 2560),
    'mask2former_r50_cityscapes': (1024, 2048),
    'mask2former_r50_mapillary': (2048, 2048),
    'mask2former_r50_ade20k-panoptic': (640, 2560),
    'mask2former_r50_cityscapes-instance': (1024, 2048),
    'mask2former_r50_coco-instance': (800, 1333),
    'mask2former_r50_coco-panoptic': (800, 1333),
}


@pytest.mark.parametrize('row', TEST_SIDES)
def test_test_images_are_pillow_s(row: str) -> None:
    cfg = load(row)
    init_default_scope(cfg.default_scope)
    steps = Compose(cfg.test_dataloader.dataset.pipeline[:2])
    for path in PHOTOS[:2]:
        image = pixels_of(path)
        size = fitted(image.shape[:2], *TEST_SIDES[row])
        found = steps({'img_path': str(path)})['img']
        assert (found == resized(image, size, BILINEAR)).all()


def test_views_of_test_time_augmentation_are_pillow_s_twice() -> None:
    """The official views are made from the image that the test resized already."""
    init_default_scope('mmseg')
    views = Compose(load('mask2former_r50_ade20k').tta_pipeline)({'img_path': str(PHOTOS[0])})
    image = pixels_of(PHOTOS[0])
    once = resized(image, fitted(image.shape[:2], 512, 2048), BILINEAR)
    expected = []
    for short in (256, 384, 512, 640, 768, 896):
        twice = resized(once, fitted(once.shape[:2], short, 3584), BILINEAR)
        expected += [twice, twice[:, ::-1]]
    for view, image in zip(views['inputs'], expected, strict=True):
        assert (view.permute(1, 2, 0).numpy() == image).all()


def floor_rule(label_map: np.ndarray, longest: int) -> np.ndarray:
    """Resize with our transform to this long side."""
    results = {'img': np.zeros((*label_map.shape, 3), np.uint8), 'map': label_map}
    results['seg_fields'] = ['map']
    return ResizeShortestEdge(10**6, longest).transform(results)['map']


@pytest.mark.parametrize('old', [480, 512, 427, 640, 1024, 2048])
def test_label_maps_follow_torch_s_rule_at_every_size(old: int) -> None:
    """Sizes include those where i * old / new is whole, which OpenCV sometimes rounds down."""
    columns = np.arange(old, dtype=np.int32)[None].repeat(20, 0)
    sides = {int(x * 0.1 * side) for side in (512, 640, 1024, 2048) for x in range(5, 21)}
    for new in sorted({*sides, 214, 249, 340, old, 2 * old}):
        found = floor_rule(columns, new)
        assert found.shape[1] == new
        assert (found[0] == nearest_of_torch(columns, (1, new))[0]).all(), (old, new)


def test_label_maps_and_segments_have_each_its_own_nearest_pixel() -> None:
    """6 pixels become 4: floor(1.5 i) is 0 1 3 4, floor(1.5 (i + 1/2)) is 0 2 3 5."""
    label_map = np.arange(6, dtype=np.uint8)[None].repeat(6, 0)
    assert floor_rule(label_map, 4)[0].tolist() == [0, 1, 3, 4]
    assert resized(label_map, (4, 4), NEAREST)[0].tolist() == [0, 2, 3, 5]
    segments = SegmentMap(
        ids=label_map.astype(np.int32),
        segment_ids=np.arange(6, dtype=np.int32),
        labels=np.arange(6),
        is_thing=np.zeros(6, bool),
        rows=np.arange(6),
        columns=np.arange(6),
    )
    assert segments.resize((4, 4)).index_map()[0].tolist() == [0, 2, 3, 5]


def short_edge_jitter(
    size: tuple[int, int], step: Any, seed: int
) -> tuple[tuple[int, int], list[int]]:
    """Draw new size and crop offset (y, x), in the order of the official code."""
    np.random.seed(seed)
    scales = step.resize.scale
    new = fitted(size, scales[np.random.randint(len(scales))], step.resize.max_size)
    room = [max(n - c, 0) for n, c in zip(new, step.crop.crop_size, strict=True)]
    return new, [np.random.randint(length + 1) for length in room]


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('row', ['mask2former_r50_ade20k', 'mask2former_swin-l_ade20k'])
def test_semantic_training_by_hand(row: str, seed: int) -> None:
    """The steps are resize, crop, flip and pad; colors have a test of their own."""
    cfg, path = load(row), PHOTOS[seed]
    init_default_scope('mmseg')
    steps = {step['type']: step for step in cfg.train_dataloader.dataset.pipeline}
    resize_and_crop = steps['mmseg_m2f.ResizeAndCrop']
    label_path = TINY / f'coco/labelmap/train/{path.stem}.png'
    results = {'img_path': str(path), 'seg_map_path': str(label_path), 'seg_fields': []}
    results['reduce_zero_label'] = False
    del steps['mmseg_m2f.PhotoMetricDistortion'], steps['PackSegInputs']
    for step in steps.values():
        np.random.seed(seed)
        results = Compose([step])(results)

    image, label_map = pixels_of(path), np.asarray(Image.open(label_path))
    size, (y, x) = short_edge_jitter(image.shape[:2], resize_and_crop, seed)
    crop = resize_and_crop.crop.crop_size
    image, label_map = resized(image, size, BILINEAR), nearest_of_torch(label_map, size)
    image, label_map = (a[y : y + crop[0], x : x + crop[1]] for a in (image, label_map))
    if results['flip']:
        image, label_map = image[:, ::-1], label_map[:, ::-1]
    assert (results['img'] == padded(image, crop, 128)).all()
    assert (results['gt_seg_map'] == padded(label_map, crop, 255)).all()


@cache
def segments_of(row: str, name: str, split: str = 'train') -> Any:
    """Build the data set of a config on the committed images."""
    cfg = load(row)
    init_default_scope('mmdet')
    kind = parse(row).task
    settings = cfg.train_dataloader.dataset.to_dict() | {
        'data_root': str(TINY / name),
        'ann_file': f'annotations/{"instances" if kind == "instance" else kind}_{split}.json',
        'data_prefix': {'img': f'img/{split}', 'seg': f'panoptic/{split}'},
    }
    if kind == 'instance':
        del settings['data_prefix']['seg']
    # The facade's classes are its own; of COCO's panoptic set the committed files have all.
    if name == 'facade':
        del settings['metadata']
    return DATASETS.build(settings)


def large_scale_jitter(size: tuple[int, int], seed: int) -> tuple[bool, tuple[int, int], list[int]]:
    """Draw flip, new size and crop offset (y, x), in the order of the official code."""
    np.random.seed(seed)
    is_flipped = np.random.uniform() < 0.5
    # The whole image fits into a square of this side.
    side = 1024 * np.random.uniform(0.1, 2.0)
    factor = side / max(size)
    new = tuple(int(np.round(length * factor)) for length in size)
    share = np.random.uniform()
    return is_flipped, new, [int(np.round(max(length - 1024, 0) * share)) for length in new]


def jittered(pixels: np.ndarray, seed: int, how: Image.Resampling, fill: int) -> np.ndarray:
    is_flipped, size, (y, x) = large_scale_jitter(pixels.shape[:2], seed)
    pixels = np.ascontiguousarray(pixels[:, ::-1]) if is_flipped else pixels
    pixels = resized(pixels, size, how)[y : y + 1024, x : x + 1024]
    return padded(pixels, (1024, 1024), fill)


def run(dataset: Any, index: int, seed: int) -> Record:
    """Run the pipeline from loading to packing with this seed."""
    record = dataset.get_data_info(index)
    np.random.seed(seed)
    return dataset.pipeline(record)


def segment_masks(pixels: np.ndarray, segments: list[dict[str, Any]]) -> np.ndarray:
    ids = pixels.astype(int) @ (1, 256, 65536)
    return np.stack([ids == segment['id'] for segment in segments])


def packed_masks(packed: Record, num_classes: int) -> np.ndarray:
    is_thing = torch.ones(num_classes, dtype=torch.bool)
    size = tuple(packed['inputs'].shape[1:])
    return targets_of([packed['data_samples']], is_thing, size)[0].masks.numpy()


# Enlarged, shrunk, flipped and not.
@pytest.mark.parametrize('seed', range(5))
def test_coco_s_panoptic_training_by_hand(seed: int) -> None:
    dataset = segments_of('mask2former_r50_coco-panoptic', 'coco')
    packed, info = run(dataset, seed, seed), dataset.get_data_info(seed)
    image = jittered(pixels_of(info['img_path']), seed, BILINEAR, fill=128)
    assert (packed['inputs'].permute(1, 2, 0).numpy() == image).all()
    colors = np.asarray(Image.open(info['seg_map_path']).convert('RGB'))
    # All three channels are padded with 255, which is the id of no segment.
    colors = jittered(colors, seed, NEAREST, fill=255)
    segments = [segment for segment in info['segments_info'] if not segment['is_crowd']]
    assert packed['data_samples'].gt_segments.labels.tolist() == [s['label'] for s in segments]
    expected = segment_masks(colors, segments)
    assert (packed_masks(packed, 133) == expected).all()


@pytest.mark.parametrize('seed', range(5))
def test_coco_s_instance_training_by_hand(seed: int) -> None:
    """Polygons are moved as coordinates and drawn in the final grid; emptied ones are left out."""
    dataset = segments_of('mask2former_r50_coco-instance', 'facade')
    packed, info = run(dataset, seed, seed), dataset.get_data_info(seed)
    image = pixels_of(info['img_path'])
    is_flipped, size, (y, x) = large_scale_jitter(image.shape[:2], seed)
    masks, labels = [], []
    for instance in info['instances']:
        moved = []
        for polygon in instance['segmentation']:
            points = np.reshape(polygon, (-1, 2)).astype(float)
            if is_flipped:
                points[:, 0] = image.shape[1] - points[:, 0]
            points *= np.divide(size, image.shape[:2])[::-1]
            moved.append((points - (x, y)).ravel().tolist())
        encoded = coco_mask.merge(coco_mask.frPyObjects(moved, 1024, 1024))
        mask = coco_mask.decode(encoded).astype(bool)
        mask[size[0] :] = mask[:, size[1] :] = False
        if mask.any():
            masks.append(mask)
            labels.append(instance['label'])
    assert packed['data_samples'].gt_instances.labels.tolist() == labels
    assert (packed_masks(packed, 5) == np.stack(masks)).all()
    expected = jittered(image, seed, BILINEAR, fill=128)
    assert (packed['inputs'].permute(1, 2, 0).numpy() == expected).all()


def test_the_seeds_above_reach_every_case() -> None:
    flips, sizes, offsets = zip(*(large_scale_jitter((384, 384), s) for s in range(5)), strict=True)
    assert set(flips) == {True, False}
    assert min(sizes) < (384, 384) < (1024, 1024) < max(sizes)
    assert max(offsets) > [0, 0]


@pytest.mark.parametrize('seed', range(4))
def test_ade20k_s_panoptic_training_by_hand(seed: int) -> None:
    """The steps are resize, crop, flip and pad, on the image and on the colors of the PNG."""
    init_default_scope('mmdet')
    steps = load('mask2former_r50_ade20k-panoptic').train_dataloader.dataset.pipeline
    info = segments_of('mask2former_r50_coco-panoptic', 'coco').get_data_info(seed)
    results = dict(info)
    for step in steps:
        if 'PhotoMetric' in step['type']:
            continue
        np.random.seed(seed)
        results = Compose([step])(results)
    [resize_and_crop] = [step for step in steps if step['type'] == 'mmseg_m2f.ResizeAndCrop']
    size, (y, x) = short_edge_jitter((info['height'], info['width']), resize_and_crop, seed)
    np.random.seed(seed)
    is_flipped = np.random.uniform() < 0.5

    def by_hand(pixels: np.ndarray, how: Image.Resampling, fill: int) -> np.ndarray:
        pixels = resized(pixels, size, how)[y : y + 640, x : x + 640]
        return padded(pixels[:, ::-1] if is_flipped else pixels, (640, 640), fill)

    expected = by_hand(pixels_of(info['img_path']), BILINEAR, 128)
    assert (results['inputs'].permute(1, 2, 0).numpy() == expected).all()
    colors = np.asarray(Image.open(info['seg_map_path']).convert('RGB'))
    segments = [segment for segment in info['segments_info'] if not segment['is_crowd']]
    expected = segment_masks(by_hand(colors, NEAREST, 255), segments)
    assert (packed_masks(results, 133) == expected).all()


def emptied_record() -> Record:
    """Return a record with two segments, of which a crop has emptied the first."""
    ids = np.full((8, 8), 7, np.int32)
    ids[:2] = 5
    segments = SegmentMap(
        ids=ids,
        segment_ids=np.array([5, 7], np.int32),
        labels=np.array([1, 0]),
        is_thing=np.ones(2, bool),
        rows=np.arange(8),
        columns=np.arange(8),
    )
    return {'img': np.zeros((6, 8, 3), np.uint8), 'gt_segments': segments.crop(0, 2, 8, 6)}


@pytest.mark.parametrize('row', DETECTOR_ROWS)
def test_what_a_crop_has_emptied(row: str) -> None:
    """An emptied segment stays as a mask without a pixel, except for instances of COCO."""
    settings = dict(load(row).train_dataloader.dataset.pipeline[-1])
    assert settings.pop('type') == 'mmseg_m2f.PackSegments'
    packed = PackSegments(**settings).transform(emptied_record())
    areas = packed_masks(packed, 2).sum(axis=(1, 2)).tolist()
    is_coco_instance = (parse(row).dataset, parse(row).task) == ('coco', 'instance')
    assert areas == ([48] if is_coco_instance else [0, 48])


# One row per framework and way of padding; the others share the settings. Each with the size of
# its crop: one that is no multiple of 32, so that the batch is padded as well.
@pytest.mark.parametrize(
    ('row', 'transform', 'size'),
    [
        ('mask2former_r50_ade20k', 'Pad', {'size': (50, 30)}),
        ('mask2former_r50_ade20k-panoptic', 'mmseg_m2f.PadToSize', {'size': (30, 50)}),
        ('mask2former_r50_coco-panoptic', 'mmseg_m2f.FixedSizeCrop', {'crop_size': (30, 50)}),
    ],
)
def test_padding_of_the_crop_is_grey_and_of_the_batch_the_mean(
    row: str, transform: str, size: dict[str, tuple[int, int]]
) -> None:
    """Grey 128 is normalized; the padding up to a multiple of 32 is added afterwards."""
    cfg = load(row)
    init_default_scope(cfg.default_scope)
    settings = {**cfg.model.data_preprocessor.to_dict()}
    mean, std = torch.tensor(settings['mean']), torch.tensor(settings['std'])
    preprocess = MODELS.build({**settings, 'type': f'{cfg.default_scope}.{settings["type"]}'})
    assert settings['bgr_to_rgb']
    pipeline = cfg.train_dataloader.dataset.pipeline
    crops = [step.crop for step in pipeline if step['type'] == 'mmseg_m2f.ResizeAndCrop']
    steps = {step['type']: step for step in [*pipeline, *crops]}
    # Blue is 1, green 2, red 3; below it the row's own transform pads.
    image = np.array([1, 2, 3], np.uint8)[None, None].repeat(20, 0).repeat(50, 1)
    results = {'img': image, 'img_shape': (20, 50), 'seg_fields': []}
    image = Compose([{**steps[transform], **size}])(results)['img']
    assert image.shape == (30, 50, 3)
    image = torch.from_numpy(image).permute(2, 0, 1)
    sample = sample_of(cfg.default_scope, (30, 50))
    inputs = preprocess({'inputs': [image], 'data_samples': [sample]}, training=False)['inputs']
    color = (torch.tensor([3.0, 2.0, 1.0]) - mean) / std
    torch.testing.assert_close(inputs[0, :, 5, 5], color)
    torch.testing.assert_close(inputs[0, :, 25, 5], (128 - mean) / std)
    assert inputs.shape[2:] == (32, 64)
    assert not inputs[0, :, 30:].any()
    assert not inputs[0, :, :, 50:].any()


def sample_of(scope: str, size: tuple[int, int]) -> Any:
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    return Sample(metainfo={'img_shape': size, 'ori_shape': size})


@pytest.mark.parametrize('contrast_first', [0, 1])
def test_color_jitter_draws_the_official_numbers(
    contrast_first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change has a coin of its own, and contrast a second one for its place."""
    calls: list[tuple[float, ...]] = []

    def randint(*limits: int) -> int:
        calls.append(limits)
        # The second coin says where contrast is.
        is_place = [call for call in calls if call == (2,)] == [(2,)] * 2 and limits == (2,)
        return limits[0] if len(limits) == 2 else contrast_first if is_place else 1

    def uniform(low: float, high: float) -> float:
        calls.append((low, high))
        return high

    monkeypatch.setattr(np.random, 'randint', randint)
    monkeypatch.setattr(np.random, 'uniform', uniform)
    PhotoMetricDistortion().transform({'img': np.full((2, 2, 3), 90, np.uint8)})
    coin = (2,)
    brightness, contrast = [coin, (-32, 32)], [coin, (0.5, 1.5)]
    # Whole numbers from -18 to 18, the last one included.
    colors = [coin, (0.5, 1.5), coin, (-18, 19)]
    first, last = (contrast, []) if contrast_first else ([], contrast)
    assert calls == [*brightness, coin, *first, *colors, *last]


def test_committed_photos_are_what_pillow_decodes() -> None:
    """The official loader decodes with Pillow, ours with OpenCV; both use libjpeg."""
    for path in PHOTOS:
        pillow = np.asarray(Image.open(path).convert('RGB')).astype(int)
        assert np.abs(pillow - pixels_of(path)[..., ::-1]).max() <= 1
