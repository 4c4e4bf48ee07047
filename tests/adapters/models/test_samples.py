"""Data samples of mmdet to targets, and results to its encodings."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

structures = pytest.importorskip('mmdet.structures')
from mmdet.structures.mask import BitmapMasks, PolygonMasks  # noqa: E402

from mmseg_m2f import core  # noqa: E402
from mmseg_m2f.adapters.models.samples import encode_panoptic, geometry_of, targets_of  # noqa: E402

# Five classes, things among them in no particular place.
IS_THING = torch.tensor([False, True, False, True, False])
SIZE = (6, 8)
# A rectangle of 2 x 3 pixels as polygon and as bitmap; a square of 2 x 2.
POLYGONS = [[np.array([1.0, 1, 4, 1, 4, 3, 1, 3])], [np.array([0.0, 0, 2, 0, 2, 2, 0, 2])]]


def rectangles(height=4, width=5):
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 1:3, 1:4] = True
    masks[1, 0:2, 0:2] = True
    return masks


def sample(**fields):
    meta = {'img_path': 'street.jpg', 'img_shape': (4, 5), 'ori_shape': (40, 50, 3)}
    made = structures.DetDataSample(metainfo=meta)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def instances(labels, masks):
    return InstanceData(labels=torch.tensor(labels), masks=masks)


def segments(segment_map, labels):
    data_sample = sample(gt_panoptic_seg=PixelData(segment_idx=segment_map[None].int()))
    data_sample.gt_segments = InstanceData(labels=torch.tensor(labels, dtype=torch.long))
    return data_sample


def padded(masks):
    """What ``SIZE`` makes of masks: False to the right and below."""
    full = torch.zeros(len(masks), *SIZE, dtype=torch.bool)
    full[:, : masks.shape[1], : masks.shape[2]] = masks
    return full


def test_an_index_map_gives_one_target_per_segment_also_where_it_lost_all_pixels():
    segment_map = torch.tensor([[0, 0, -1], [2, -1, -1]])
    target = targets_of([segments(segment_map, [4, 1, 3])], IS_THING, SIZE)[0]
    assert target.labels.tolist() == [4, 1, 3]
    expected = torch.stack([segment_map == index for index in range(3)])
    assert torch.equal(target.masks, padded(expected))
    assert expected.sum((1, 2)).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    'masks',
    [
        rectangles(),
        BitmapMasks(rectangles().numpy().astype(np.uint8), 4, 5),
        PolygonMasks(POLYGONS, 4, 5),
    ],
    ids=['tensor', 'bitmaps', 'polygons'],
)
def test_masks_of_every_kind_give_the_same_target(masks):
    target = targets_of([sample(gt_instances=instances([3, 1], masks))], IS_THING, SIZE)[0]
    assert target.labels.tolist() == [3, 1]
    assert target.masks.dtype == torch.bool
    assert torch.equal(target.masks, padded(rectangles()))


NO_LABELS = torch.zeros(0, dtype=torch.long)


@pytest.mark.parametrize(
    'empty',
    [
        segments(torch.full((4, 5), -1), []),
        sample(gt_instances=InstanceData(labels=NO_LABELS, masks=BitmapMasks([], 4, 5))),
        sample(gt_instances=InstanceData(labels=NO_LABELS, masks=PolygonMasks([], 4, 5))),
    ],
    ids=['index map', 'bitmaps', 'polygons'],
)
def test_an_empty_sample_gives_no_target(empty):
    target = targets_of([empty], IS_THING, SIZE)[0]
    assert target.labels.shape == (0,)
    assert target.masks.shape == (0, *SIZE)


def test_a_label_map_adds_the_stuff_and_nothing_else():
    """Things in the map are the instances' affair, 255 is nobody's; sizes may differ by padding."""
    label_map = torch.tensor([[0, 0, 1, 4], [3, 3, 255, 4], [0, 2, 255, 1]], dtype=torch.uint8)
    data_sample = sample(
        gt_instances=instances([1, 1], rectangles()),
        gt_sem_seg=PixelData(sem_seg=label_map[None]),
    )
    target = targets_of([data_sample], IS_THING, SIZE)[0]
    assert target.labels.tolist() == [1, 1, 0, 2, 4]
    stuff = torch.stack([label_map == label for label in (0, 2, 4)])
    assert torch.equal(target.masks, torch.cat([padded(rectangles()), padded(stuff)]))
    # Another label may be the one to ignore.
    data_sample.gt_sem_seg = PixelData(sem_seg=torch.tensor([[[0, 254]]]))
    data_sample.gt_sem_seg.set_metainfo({'ignore_index': 254})
    assert targets_of([data_sample], IS_THING, SIZE)[0].labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    'wrong',
    [
        segments(torch.zeros(4, 5), [5]),
        segments(torch.zeros(4, 5), [-1]),
        sample(gt_instances=instances([1, 5], rectangles())),
        sample(
            gt_instances=instances([1, 1], rectangles()),
            gt_sem_seg=PixelData(sem_seg=torch.full((1, 4, 5), 7)),
        ),
    ],
    ids=['segment', 'negative', 'instance', 'label map'],
)
def test_a_wrong_label_names_the_file_and_what_is_allowed(wrong):
    with pytest.raises(ValueError, match=r'street\.jpg: .*(\[5\]|\[-1\]|\[7\]).* 4'):
        targets_of([wrong], IS_THING, SIZE)
    wrong.set_metainfo({'seg_map_path': 'street.png'})
    with pytest.raises(ValueError, match=r'street\.png: '):
        targets_of([wrong], IS_THING, SIZE)


def test_a_sample_without_masks_says_which_transform_is_missing():
    boxes_only = sample(gt_instances=InstanceData(labels=torch.tensor([1])))
    for wrong in (sample(), boxes_only):
        with pytest.raises(ValueError, match=r'street\.jpg.*with_mask=True'):
            targets_of([wrong], IS_THING, SIZE)[0]


def test_geometry():
    assert geometry_of(sample(), (32, 64)) == core.ImageGeometry((32, 64), (4, 5), (40, 50))
    with pytest.raises(ValueError, match=r"\['ori_shape'\].*meta_keys"):
        geometry_of(structures.DetDataSample(metainfo={'img_shape': (4, 5)}), (32, 64))


def test_panoptic_encoding():
    """Things count up over all classes, stuff is its bare class, void the number of classes."""
    panoptic = core.Panoptic(
        segment_map=torch.tensor([[0, 1, 2], [3, 4, 4]], dtype=torch.int32),
        labels=torch.tensor([1, 0, 3, 1]),
        is_thing=torch.tensor([True, False, True, True]),
        scores=torch.ones(4),
    )
    encoded = encode_panoptic(panoptic, 5).sem_seg
    assert encoded.tolist() == [[[5, 1001, 0], [2003, 3001, 3001]]]
    assert encoded.dtype == torch.int32
    empty = core.Panoptic(torch.zeros(1, 2, dtype=torch.int32), *(torch.zeros(0).bool(),) * 3)
    assert encode_panoptic(empty, 5).sem_seg.tolist() == [[[5, 5]]]
