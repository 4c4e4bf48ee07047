"""Pipelines of the configs on real images, against Pillow, NumPy and torch used by hand.

What a single transform does with small numbers is tested beside it; here the official steps are
written out anew, in their order, with the draws they make, and each row's pipeline is held to them.
"""

from collections.abc import Callable
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

import mmdet.structures
import mmseg.structures
from mmengine.registry import DATASETS, MODELS

from mmseg_m2f.adapters.data import PackSegments, ResizeShortestEdge
from mmseg_m2f.adapters.models.samples import targets_of
from tests.adapters.data.scenes import segment_map
from tests.configs.rows import DETECTOR_ROWS, REPOSITORY, load, parse

TINY = REPOSITORY / 'data/tiny'
PHOTOS = sorted((TINY / 'coco/img/train').glob('*.jpg'))[:6]
Record = dict[str, Any]
Size = tuple[int, int]
Resize = Callable[[np.ndarray, Size], np.ndarray]


def pixels_of(path: Path | str) -> np.ndarray:
    """Decode an image as the loader of every config does: blue, green, red."""
    return Compose([{'type': 'LoadImageFromFile'}])({'img_path': str(path)})['img']


def bilinear(image: np.ndarray, size: Size) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def nearest(image: np.ndarray, size: Size) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))


def nearest_of_torch(label_map: np.ndarray, size: Size) -> np.ndarray:
    """Resize as detectron2 does: with torch, because Pillow refuses its float64 label maps."""
    values = torch.tensor(label_map, dtype=torch.float64)
    return F.interpolate(values[None, None], size)[0, 0].numpy()


def fitted(size: Size, short: int, longest: int) -> Size:
    """Return the size with short side ``short``, unless the long side would exceed ``longest``."""
    scale = min(short / min(size), longest / max(size))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def padded(image: np.ndarray, size: Size, value: int) -> np.ndarray:
    canvas = np.full((*size, *image.shape[2:]), value, image.dtype)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def image_in(packed: Record) -> np.ndarray:
    return packed['inputs'].permute(1, 2, 0).numpy()


def masks_in(packed: Record) -> np.ndarray:
    is_thing, size = torch.ones(133, dtype=torch.bool), tuple(packed['inputs'].shape[1:])
    return targets_of([packed['data_samples']], is_thing, size)[0].masks.numpy()


def colors_of(info: Record) -> np.ndarray:
    return np.asarray(Image.open(info['seg_map_path']).convert('RGB'))


def segments_in(info: Record) -> list[Record]:
    return [segment for segment in info['segments_info'] if not segment['is_crowd']]


def masks_of_colors(colors: np.ndarray, info: Record) -> np.ndarray:
    ids = colors.astype(int) @ (1, 256, 65536)
    return np.stack([ids == segment['id'] for segment in segments_in(info)])


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
        assert (found == bilinear(image, size)).all()


def test_views_of_test_time_augmentation_are_pillow_s_twice() -> None:
    """The official views are made from the image that the test resized already."""
    init_default_scope('mmseg')
    views = Compose(load('mask2former_r50_ade20k').tta_pipeline)({'img_path': str(PHOTOS[0])})
    image = pixels_of(PHOTOS[0])
    once = bilinear(image, fitted(image.shape[:2], 512, 2048))
    expected = []
    for short in (256, 384, 512, 640, 768, 896):
        twice = bilinear(once, fitted(once.shape[:2], short, 3584))
        expected += [twice, twice[:, ::-1]]
    for view, image in zip(views['inputs'], expected, strict=True):
        assert (view.permute(1, 2, 0).numpy() == image).all()


@pytest.mark.parametrize('old', [480, 512, 427, 640, 1024, 2048])
def test_label_maps_follow_torch_s_rule_at_every_size(old: int) -> None:
    """Sizes include those where i * old / new is whole, which OpenCV sometimes rounds down."""
    columns = np.arange(old, dtype=np.int32)[None].repeat(20, 0)
    sides = {int(x * 0.1 * side) for side in (512, 640, 1024, 2048) for x in range(5, 21)}
    for new in sorted({*sides, 214, 249, 340, old, 2 * old}):
        results = {'img': np.zeros((20, old, 3), np.uint8), 'map': columns, 'seg_fields': ['map']}
        found = ResizeShortestEdge(10**6, max_size=new).transform(results)['map']
        assert (found[0] == nearest_of_torch(columns, (1, new))[0]).all(), (old, new)


def run_but_colors(row: str, results: Record, seed: int) -> tuple[Record, Callable]:
    """Return what the steps of a row give, each with this seed, and a function that does the same.

    The steps are resize, crop, flip, pad and packing.
    """
    steps = load(row).train_dataloader.dataset.pipeline
    [jitter] = [step for step in steps if step['type'] == 'mmseg_m2f.ResizeAndCrop']
    for step in steps:
        if 'PhotoMetric' not in step['type']:
            np.random.seed(seed)
            results = Compose([step])(results)

    def by_hand(pixels: np.ndarray, resize: Resize, fill: int) -> np.ndarray:
        # New size and crop offset are drawn in the order of the official code.
        np.random.seed(seed)
        short = jitter.resize.scale[np.random.randint(len(jitter.resize.scale))]
        size = fitted(pixels.shape[:2], short, jitter.resize.max_size)
        height, width = crop = jitter.crop.crop_size
        y, x = (np.random.randint(max(n - c, 0) + 1) for n, c in zip(size, crop, strict=True))
        pixels = resize(pixels, size)[y : y + height, x : x + width]
        return padded(pixels[:, ::-1] if results['data_samples'].flip else pixels, crop, fill)

    return results, by_hand


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('row', ['mask2former_r50_ade20k', 'mask2former_swin-l_ade20k'])
def test_semantic_training_by_hand(row: str, seed: int) -> None:
    init_default_scope('mmseg')
    path = PHOTOS[seed]
    label_path = TINY / f'coco/labelmap/train/{path.stem}.png'
    results = {'img_path': str(path), 'seg_map_path': str(label_path), 'seg_fields': []}
    packed, by_hand = run_but_colors(row, results | {'reduce_zero_label': False}, seed)
    assert (image_in(packed) == by_hand(pixels_of(path), bilinear, 128)).all()
    label_map = by_hand(np.asarray(Image.open(label_path)), nearest_of_torch, 255)
    assert (packed['data_samples'].gt_sem_seg.data[0].numpy() == label_map).all()


@pytest.mark.parametrize('seed', range(4))
def test_ade20k_s_panoptic_training_by_hand(seed: int) -> None:
    info = segments_of('mask2former_r50_coco-panoptic', 'coco').get_data_info(seed)
    packed, by_hand = run_but_colors('mask2former_r50_ade20k-panoptic', dict(info), seed)
    assert (image_in(packed) == by_hand(pixels_of(info['img_path']), bilinear, 128)).all()
    colors = by_hand(colors_of(info), nearest, 255)
    assert (masks_in(packed) == masks_of_colors(colors, info)).all()


@cache
def segments_of(row: str, name: str) -> Any:
    """Build the data set of a config on the committed images."""
    init_default_scope('mmdet')
    settings = load(row).train_dataloader.dataset.to_dict() | {'data_root': str(TINY / name)}
    if parse(row).task == 'instance':
        settings['ann_file'] = 'annotations/instances_train.json'
        settings['data_prefix'] = {'img': 'img/train'}
    else:
        settings['ann_file'] = 'annotations/panoptic_train.json'
        settings['data_prefix'] = {'img': 'img/train', 'seg': 'panoptic/train'}
    # The facade's classes are its own; of COCO's panoptic set the committed files have all.
    if name == 'facade':
        del settings['metadata']
    return DATASETS.build(settings)


def draw_large_scale(size: Size, seed: int) -> tuple[bool, Size, list[int]]:
    """Draw flip, new size and crop offset (y, x), in the order of the official code."""
    np.random.seed(seed)
    is_flipped = np.random.uniform() < 0.5
    # The whole image fits into a square of this side.
    factor = 1024 * np.random.uniform(0.1, 2.0) / max(size)
    height, width = (int(np.round(length * factor)) for length in size)
    share = np.random.uniform()
    offset = [int(np.round(max(length - 1024, 0) * share)) for length in (height, width)]
    return is_flipped, (height, width), offset


def jittered(pixels: np.ndarray, seed: int, resize: Resize, fill: int) -> np.ndarray:
    is_flipped, size, (y, x) = draw_large_scale(pixels.shape[:2], seed)
    pixels = np.ascontiguousarray(pixels[:, ::-1]) if is_flipped else pixels
    return padded(resize(pixels, size)[y : y + 1024, x : x + 1024], (1024, 1024), fill)


def run(dataset: Any, seed: int) -> tuple[Record, Record]:
    """Return the packed sample of image number ``seed``, drawn with this seed, and its record."""
    info = dataset.get_data_info(seed)
    np.random.seed(seed)
    return dataset.pipeline(dict(info)), info


# Enlarged, shrunk, flipped and not.
@pytest.mark.parametrize('seed', range(5))
def test_coco_s_panoptic_training_by_hand(seed: int) -> None:
    packed, info = run(segments_of('mask2former_r50_coco-panoptic', 'coco'), seed)
    image = jittered(pixels_of(info['img_path']), seed, bilinear, fill=128)
    assert (image_in(packed) == image).all()
    labels = [segment['label'] for segment in segments_in(info)]
    assert packed['data_samples'].gt_segments.labels.tolist() == labels
    # All three channels are padded with 255, which is the id of no segment.
    colors = jittered(colors_of(info), seed, nearest, fill=255)
    assert (masks_in(packed) == masks_of_colors(colors, info)).all()


@pytest.mark.parametrize('seed', range(5))
def test_coco_s_instance_training_by_hand(seed: int) -> None:
    """Polygons are moved as coordinates and drawn in the final grid; emptied ones are left out."""
    packed, info = run(segments_of('mask2former_r50_coco-instance', 'facade'), seed)
    image = pixels_of(info['img_path'])
    is_flipped, size, (y, x) = draw_large_scale(image.shape[:2], seed)
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
    assert (masks_in(packed) == np.stack(masks)).all()
    assert (image_in(packed) == jittered(image, seed, bilinear, fill=128)).all()


def test_the_seeds_above_reach_every_case() -> None:
    flips, sizes, offsets = zip(*(draw_large_scale((384, 384), s) for s in range(5)), strict=True)
    assert set(flips) == {True, False}
    assert min(sizes) < (384, 384) < (1024, 1024) < max(sizes)
    assert max(offsets) > [0, 0]


@pytest.mark.parametrize('row', DETECTOR_ROWS)
def test_what_a_crop_has_emptied(row: str) -> None:
    """An emptied segment stays as a mask without a pixel, except for instances of COCO."""
    settings = dict(load(row).train_dataloader.dataset.pipeline[-1])
    assert settings.pop('type') == 'mmseg_m2f.PackSegments'
    ids = np.full((8, 8), 7, np.int32)
    ids[:2] = 5
    segments = segment_map(ids, [5, 7]).crop(0, 2, 8, 6)
    record = {'img': np.zeros((6, 8, 3), np.uint8), 'gt_segments': segments}
    areas = masks_in(PackSegments(**settings).transform(record)).sum(axis=(1, 2)).tolist()
    is_coco_instance = (parse(row).dataset, parse(row).task) == ('coco', 'instance')
    assert areas == ([48] if is_coco_instance else [0, 48])


@pytest.mark.parametrize('row', ['mask2former_r50_ade20k', 'mask2former_r50_ade20k-panoptic'])
def test_padding_of_the_crop_is_grey_and_of_the_batch_the_mean(row: str) -> None:
    """Grey 128 is normalized; the padding up to a multiple of 32 is added afterwards."""
    cfg = load(row)
    init_default_scope(cfg.default_scope)
    settings = cfg.model.data_preprocessor.to_dict()
    settings['type'] = f'{cfg.default_scope}.{settings["type"]}'
    mean, std = torch.tensor(settings['mean']), torch.tensor(settings['std'])
    # Blue is 1, green 2, red 3; below it is padding of the crop.
    image = np.array([1, 2, 3], np.uint8)[None, None].repeat(20, 0).repeat(50, 1)
    image = torch.from_numpy(padded(image, (30, 50), 128)).permute(2, 0, 1)
    is_mmdet = cfg.default_scope == 'mmdet'
    sample = mmdet.structures.DetDataSample() if is_mmdet else mmseg.structures.SegDataSample()
    sample.set_metainfo({'img_shape': (30, 50), 'ori_shape': (30, 50)})
    batch = {'inputs': [image], 'data_samples': [sample]}
    inputs = MODELS.build(settings)(batch, training=False)['inputs']
    color = (torch.tensor([3.0, 2.0, 1.0]) - mean) / std
    torch.testing.assert_close(inputs[0, :, 5, 5], color)
    torch.testing.assert_close(inputs[0, :, 25, 5], (128 - mean) / std)
    assert inputs.shape[2:] == (32, 64)
    assert not inputs[0, :, 30:].any()
    assert not inputs[0, :, :, 50:].any()


def test_committed_photos_are_what_pillow_decodes() -> None:
    """The official loader decodes with Pillow, ours with OpenCV; both use libjpeg."""
    for path in PHOTOS:
        pillow = np.asarray(Image.open(path).convert('RGB')).astype(int)
        assert np.abs(pillow - pixels_of(path)[..., ::-1]).max() <= 1
