"""Packed samples: checked by hand, and as MMDetection's own head and preprocessor read them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from mmseg_m2f.adapters.data import (
    FixedSizeCrop,
    LoadSegments,
    PackSegments,
    RandomFlip,
    ResizeScale,
)
from mmseg_m2f.adapters.models.samples import targets_of
from mmseg_m2f.registry import TRANSFORMS
from tests.adapters.data import scenes

pytest.importorskip('mmdet')

from mmdet.models import DetDataPreprocessor
from mmdet.models.utils import preprocess_panoptic_gt
from mmdet.visualization import DetLocalVisualizer

from mmseg_m2f.adapters.data.patched_masks import PatchedMasks

COCO = Path(__file__).parents[3] / 'data/tiny/coco'
ID_MAP = np.array([[5, 5, 0, 9], [5, 7, 7, 9], [7, 7, 0, 9]], np.int32)
# Id, label, is_thing. The second has no pixel.
SEGMENTS = [(7, 2, True), (3, 4, True), (5, 1, False), (9, 0, True)]


def panoptic_record(tmp_path, id_map=ID_MAP, segments=SEGMENTS):
    scenes.write_png(tmp_path / 'a.png', id_map)
    return LoadSegments().transform(scenes.panoptic_record(tmp_path, segments, id_map.shape))


def pack(results, **settings):
    return PackSegments(**settings).transform(results)['data_samples']


def test_image_and_metainfo():
    img = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    known = {'img_id': 'x', 'img_path': 'a.jpg', 'segments_info': [], 'label_map_path': 'l.png'}
    record = {'img': img, 'height': 8, **known}
    packed = PackSegments().transform(record)
    inputs, sample = packed['inputs'], packed['data_samples']
    assert (inputs.permute(1, 2, 0).numpy() == img).all()
    assert inputs.dtype == torch.uint8
    assert inputs.is_contiguous()
    assert sample.metainfo == known
    # Without segments, in tests, there is only the image.
    assert not list(sample.keys())
    assert pack(record, meta_keys=('height', 'flip')).metainfo == {'height': 8}
    assert PackSegments().transform({'img': np.zeros((4, 5), 'u1')})['inputs'].shape == (1, 4, 5)


@pytest.mark.parametrize(
    ('settings', 'labels', 'segment_idx'),
    [
        ({}, [2, 4, 1, 0], [[2, 2, -1, 3], [2, 0, 0, 3], [0, 0, -1, 3]]),
        ({'keep_empty': False}, [2, 1, 0], [[1, 1, -1, 2], [1, 0, 0, 2], [0, 0, -1, 2]]),
        # Only the first segment has 4 pixels.
        (
            {'keep_empty': False, 'min_area': 4},
            [2],
            [[-1, -1, -1, -1], [-1, 0, 0, -1], [0, 0, -1, -1]],
        ),
    ],
)
def test_panoptic_segments(tmp_path, settings, labels, segment_idx):
    sample = pack(panoptic_record(tmp_path), **settings)
    assert sample.gt_segments.labels.tolist() == labels
    assert sample.gt_panoptic_seg.segment_idx.dtype == torch.int32
    assert sample.gt_panoptic_seg.segment_idx.tolist() == [segment_idx]
    # Its visualizer reads this encoding: the last thing has number 3, and void is 255.
    if not settings:
        encoded = [[1, 1, 255, 3000], [1, 1002, 1002, 3000], [1002, 1002, 255, 3000]]
        assert sample.gt_panoptic_seg.sem_seg.tolist() == [encoded]
    # mmdet expects this field in every sample.
    assert len(sample.gt_instances) == 0


@pytest.mark.parametrize(('keep_empty', 'things'), [(True, [2, 4, 0]), (False, [2, 0])])
def test_panoptic_segments_in_the_layout_of_mmdet(tmp_path, keep_empty, things):
    sample = pack(panoptic_record(tmp_path), keep_empty=keep_empty, layout='mmdet')
    label_map = sample.gt_sem_seg.sem_seg
    assert label_map.tolist() == [[[1, 1, 255, 0], [1, 2, 2, 0], [2, 2, 255, 0]]]
    assert sample.gt_instances.labels.tolist() == things
    expected = {2: ID_MAP == 7, 4: ID_MAP == 3, 0: ID_MAP == 9}
    masks = sample.gt_instances.masks.masks
    assert (masks == np.stack([expected[label] for label in things])).all()
    assert sample.gt_instances.bboxes[0].tolist() == [0, 1, 3, 3]
    assert 'gt_segments' not in sample


def test_instances():
    boxes = [(1, 2, 4, 5), (3, 0, 8, 6), (7, 5, 8, 6), (9, 9, 12, 12)]
    # The last one lies outside.
    areas, expected = [9, 30, 1, 0], [*map(list, boxes[:3]), [0, 0, 0, 0]]
    for settings, kept in (
        ({}, [0, 1, 2, 3]),
        ({'keep_empty': False}, [0, 1, 2]),
        ({'keep_empty': False, 'min_area': 9}, [0, 1]),
    ):
        instances = pack(scenes.instance_record(boxes), **settings).gt_instances
        assert instances.labels.tolist() == kept
        assert instances.masks.areas.tolist() == [areas[i] for i in kept]
        assert instances.bboxes.tolist() == [expected[i] for i in kept]
        assert instances.bboxes.dtype == torch.float32


@pytest.mark.parametrize('keep_empty', [True, False])
def test_no_segments(tmp_path, keep_empty):
    record, empty = panoptic_record(tmp_path, segments=[]), {'keep_empty': keep_empty}
    sample = pack(record, **empty)
    assert sample.gt_segments.labels.shape == (0,)
    assert (sample.gt_panoptic_seg.segment_idx == -1).all()
    sample = pack(record, layout='mmdet', **empty)
    assert (sample.gt_sem_seg.sem_seg == 255).all()
    assert sample.gt_instances.masks.masks.shape == (0, 3, 4)
    instances = pack(scenes.instance_record([]), **empty).gt_instances
    assert instances.bboxes.shape == (0, 4)
    assert instances.labels.dtype == torch.int64
    assert instances.masks.masks.shape == (0, 6, 8)


def test_mmdet_draws_and_pads_the_segments(tmp_path):
    results = panoptic_record(tmp_path, scenes.stripes([5, 0, 7, 9], (48, 64)))
    sample = pack({**results, 'num_classes': 6})
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = {'classes': tuple('abcdef'), 'palette': [(9, 99, 199)] * 6}
    gray = np.full((48, 64, 3), 128, np.uint8)
    # A hook passes tensors, the tool for browsing passes arrays.
    for given in (sample, sample.numpy()):
        visualizer.add_datasample('a', gray, given, draw_pred=False)
        is_changed = (visualizer.get_image() != 128).any(-1).mean(0)
        assert is_changed[:15].min() == is_changed[33:].min() == 1
        # Void stays as it is, but for the class names of its neighbors.
        assert is_changed[18:30].max() < 0.5
    preprocessor = DetDataPreprocessor(pad_mask=True, pad_seg=True, pad_size_divisor=32)
    before = targets_of([sample], torch.ones(6, dtype=torch.bool), (64, 64))[0]
    data = {'inputs': [torch.zeros(3, 48, 64, dtype=torch.uint8)], 'data_samples': [sample]}
    [moved] = preprocessor(data, training=True)['data_samples']
    after = targets_of([moved], torch.ones(6, dtype=torch.bool), (64, 64))[0]
    assert after.labels.tolist() == before.labels.tolist() == [2, 4, 1, 0]
    assert torch.equal(after.masks, before.masks)
    assert after.masks.sum((1, 2)).tolist() == [48 * 16, 0, 48 * 16, 48 * 16]


def test_masks_arrive_from_a_worker_as_they_were():
    generator = np.random.default_rng(0)
    masks = np.zeros((6, 40, 50), np.uint8)
    for index, (y, x) in enumerate(generator.integers(0, 30, (5, 2))):
        masks[index, y : y + 9, x : x + 2 * index + 1] = generator.integers(0, 2, (9, 1))
    masks[4] = 1
    for sent in (masks, masks[:0], masks[:, :0]):
        original = PatchedMasks(masks[:0], *sent.shape[1:])
        original.masks = sent  # upstream's own constructor takes no masks without rows
        arrived = pickle.loads(pickle.dumps(original))
        assert isinstance(arrived, PatchedMasks)
        assert (arrived.height, arrived.width) == sent.shape[1:]
        assert arrived.masks.dtype == np.uint8
        assert np.array_equal(arrived.masks, sent)
    # A pixel in the corner takes a byte, not 250,000.
    corner = np.zeros((1, 500, 500), np.uint8)
    corner[0, -1, -1] = 1
    assert len(pickle.dumps(PatchedMasks(corner, 500, 500))) < 1000


@pytest.mark.parametrize(
    'theirs', [{'type': 'mmcv.Resize', 'scale': (16, 12)}, {'type': 'mmcv.RandomFlip', 'prob': 1.0}]
)
def test_transforms_that_forget_the_segments_are_noticed(theirs):
    results = TRANSFORMS.build(theirs)(scenes.instance_record([(1, 2, 4, 5)]))
    with pytest.raises(ValueError, match=r'a\.jpg: .*A transform moved only one of them'):
        pack(results)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="layout must be 'segments' or 'mmdet', got 'coco'"):
        PackSegments(layout='coco')
    with pytest.raises(ValueError, match='only with keep_empty=False; got 10 with keep_empty=True'):
        PackSegments(min_area=10)


TRAINING = [
    {'type': 'LoadImageFromFile'},
    LoadSegments(),
    RandomFlip(0.5),
    ResizeScale(0.5, 2.0, (192, 192)),
    FixedSizeCrop((192, 192)),
]


def batch_of(layout):
    dataset = {
        'type': 'mmseg_m2f.PanopticDataset',
        'data_root': str(COCO),
        'ann_file': 'annotations/panoptic_val.json',
        'data_prefix': {'img': 'img/val', 'seg': 'panoptic/val'},
        'pipeline': [*TRAINING, {'type': 'mmseg_m2f.PackSegments', 'layout': layout}],
    }
    sampler = {'type': 'DefaultSampler', 'shuffle': False}
    loader = {'batch_size': 4, 'num_workers': 0, 'sampler': sampler, 'dataset': dataset}
    np.random.seed(1)
    return next(iter(Runner.build_dataloader(loader)))


def test_mmdets_head_reads_the_same_segments():
    """mmdet's targets are masks: things first, then stuff."""
    ours, theirs = batch_of('segments'), batch_of('mmdet')
    num_segments = 0
    for index in range(4):
        assert (ours['inputs'][index] == theirs['inputs'][index]).all()
        sample = theirs['data_samples'][index]
        things, label_map = sample.gt_instances, sample.gt_sem_seg.sem_seg
        labels, masks = preprocess_panoptic_gt(
            things.labels, things.masks, label_map, num_things=80, num_stuff=53
        )
        mine = ours['data_samples'][index]
        segment_idx = mine.gt_panoptic_seg.segment_idx[0]
        expected = {}
        for number, label in enumerate(mine.gt_segments.labels.tolist()):
            mask = segment_idx == number
            # Stuff that is not in the crop has no mask there.
            if label < 80 or mask.any():
                expected.setdefault(label, []).append(mask)
        assert sorted(labels.tolist()) == sorted(k for k in expected for _ in expected[k])
        for label, mask in zip(labels.tolist(), masks.bool(), strict=True):
            assert any((mask == other).all() for other in expected[label])
            num_segments += 1
    assert num_segments > 10
    preprocessor = DetDataPreprocessor(pad_mask=True, pad_seg=True, pad_size_divisor=128)
    sample = preprocessor(theirs, training=True)['data_samples'][0]
    assert sample.gt_instances.masks.masks.shape[1:] == sample.batch_input_shape == (256, 256)
    assert (sample.gt_sem_seg.sem_seg[:, 192:] == 255).all()
