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
# A rectangle of 2 x 3 pixels and a square of 2 x 2, as bitmaps and as polygons.
RECTANGLES = torch.zeros(2, 4, 5, dtype=torch.bool)
RECTANGLES[0, 1:3, 1:4] = RECTANGLES[1, 0:2, 0:2] = True
POLYGONS = [[np.array([1.0, 1, 4, 1, 4, 3, 1, 3])], [np.array([0.0, 0, 2, 0, 2, 2, 0, 2])]]


def bitmaps(part):
    return BitmapMasks(RECTANGLES.numpy().astype(np.uint8)[part], 4, 5)


def polygons(part):
    return PolygonMasks(POLYGONS[part], 4, 5)


def sample(**fields):
    meta = {'img_path': 'street.jpg', 'img_shape': (4, 5), 'ori_shape': (40, 50, 3)}
    made = structures.DetDataSample(metainfo=meta)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def instances(labels):
    return InstanceData(labels=torch.tensor(labels), masks=RECTANGLES)


def segments(segment_map, labels):
    data_sample = sample(gt_panoptic_seg=PixelData(segment_idx=segment_map[None].int()))
    data_sample.gt_segments = InstanceData(labels=torch.tensor(labels, dtype=torch.long))
    return data_sample


def check_target(data_sample, labels, masks):
    """Check the target of a sample: its masks get False to the right and below."""
    [target] = targets_of([data_sample], IS_THING, SIZE)
    assert target.labels.tolist() == labels
    full = torch.zeros(len(labels), *SIZE, dtype=torch.bool)
    full[:, : masks.shape[1], : masks.shape[2]] = masks
    assert target.masks.dtype == torch.bool
    assert torch.equal(target.masks, full)


def test_an_index_map_gives_one_target_per_segment_also_where_it_lost_all_pixels():
    segment_map = torch.tensor([[0, 0, -1], [2, -1, -1]])
    masks = torch.stack([segment_map == index for index in range(3)])
    assert masks.sum((1, 2)).tolist() == [2, 0, 1]
    check_target(segments(segment_map, [4, 1, 3]), [4, 1, 3], masks)
    check_target(segments(torch.full((4, 5), -1), []), [], RECTANGLES[:0])


@pytest.mark.parametrize('count', [2, 0])
@pytest.mark.parametrize(
    'make', [RECTANGLES.__getitem__, bitmaps, polygons], ids=['tensor', 'bitmaps', 'polygons']
)
def test_masks_of_every_kind_give_the_same_target(make, count):
    labels = torch.tensor([3, 1])[:count]
    data_sample = sample(gt_instances=InstanceData(labels=labels, masks=make(slice(count))))
    check_target(data_sample, labels.tolist(), RECTANGLES[:count])


def test_a_label_map_adds_the_stuff_and_nothing_else():
    """Things in the map are the instances' affair, 255 is nobody's; sizes may differ by padding."""
    label_map = torch.tensor([[0, 0, 1, 4], [3, 3, 255, 4], [0, 2, 255, 1]], dtype=torch.uint8)
    data_sample = sample(gt_instances=instances([1, 1]))
    data_sample.gt_sem_seg = PixelData(sem_seg=label_map[None])
    masks = torch.zeros(5, 4, 5, dtype=torch.bool)
    masks[:2] = RECTANGLES
    masks[2:, :3, :4] = torch.stack([label_map == label for label in (0, 2, 4)])
    check_target(data_sample, [1, 1, 0, 2, 4], masks)
    # Another label may be the one to ignore.
    data_sample.gt_sem_seg = PixelData(sem_seg=torch.tensor([[[0, 254]]]))
    data_sample.gt_sem_seg.set_metainfo({'ignore_index': 254})
    assert targets_of([data_sample], IS_THING, SIZE)[0].labels.tolist() == [1, 1, 0]


WRONG_MAP = PixelData(sem_seg=torch.full((1, 4, 5), 7))


@pytest.mark.parametrize(
    'wrong',
    [
        segments(torch.zeros(4, 5), [5]),
        segments(torch.zeros(4, 5), [-1]),
        sample(gt_instances=instances([1, 5])),
        sample(gt_instances=instances([1, 1]), gt_sem_seg=WRONG_MAP),
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
            targets_of([wrong], IS_THING, SIZE)


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
