import pytest
import torch

from mmseg_m2f.core.targets import (
    WrongLabelError,
    check_labels,
    check_segments,
    foreground_targets,
    instance_target,
    label_map_targets,
    pad_target,
    segment_target,
    without_empty,
)
from tests.core.watching import Watch

NOTHING = torch.zeros(0, dtype=torch.int64)


def assert_target(target, labels, masks):
    assert target.labels.tolist() == labels
    assert target.labels.dtype == torch.int64
    assert target.masks.int().tolist() == masks
    assert target.masks.dtype == torch.bool


@pytest.mark.parametrize('dtype', [torch.int16, torch.int64], ids=str)
def test_one_mask_per_class_that_occurs_in_ascending_order(dtype):
    by_hand = torch.tensor([[3, 3, 255], [0, 255, 3]], dtype=dtype)
    ignored = torch.full((2, 2), 255, dtype=dtype)
    maps = [torch.randint(0, 5, size).to(dtype) for size in ((4, 6), (7, 3), (1, 1))]
    with Watch() as watch:
        first, nothing, *others = label_map_targets([by_hand, ignored, *maps], 5)
    assert watch.waits == []  # but for the list of what is there, which .tolist() asks for
    # Pixels of the ignore label belong to no mask.
    assert_target(first, [0, 3], [[[0, 0, 0], [1, 0, 0]], [[1, 1, 0], [0, 0, 1]]])
    assert (nothing.labels.shape, nothing.masks.shape) == ((0,), (0, 2, 2))
    for label_map, target in zip(maps, others, strict=True):
        assert target.labels.tolist() == label_map.unique().tolist()
        for label, mask in zip(target.labels, target.masks, strict=True):
            assert torch.equal(mask, label_map == label)
    assert label_map_targets([], 5) == []


@pytest.mark.parametrize('ignore_index', [255, 65, -1, 3])
def test_the_ignore_label_may_be_any(ignore_index):
    [target] = label_map_targets([torch.tensor([[ignore_index, 7]])], 65, ignore_index)
    assert_target(target, [7], [[[0, 1]]])


@pytest.mark.parametrize(
    ('labels', 'ignore_index', 'message'),
    [
        ([0, 4, -2, 255], 255, r'label map holds \[-2, 4\]; allowed are 0 to 3 and the ignore '),
        ([0, 4], 255, r'label map holds \[4\]'),
        ([0, -1], 255, r'label map holds \[-1\]'),
        ([0, 255], 254, r'label map holds \[255\].* ignore label 254.* reduce_zero_label'),
    ],
)
def test_labels_out_of_range_are_named_with_what_is_allowed(labels, ignore_index, message):
    with pytest.raises(WrongLabelError, match=message):
        label_map_targets([torch.tensor([labels])], 4, ignore_index)


def test_the_image_of_a_wrong_label_is_told():
    good, bad = torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[7]])
    for call in (
        lambda: label_map_targets([good, bad], 5),
        lambda: foreground_targets([good, bad]),
        lambda: check_segments([good, good], [torch.tensor([1]), torch.tensor([9])], 5),
        lambda: check_segments([good, bad], [torch.tensor([1])] * 2, 5),
    ):
        with pytest.raises(WrongLabelError) as caught:
            call()
        assert caught.value.image == 1
    check_segments([good, good - 1], [torch.tensor([1]), NOTHING], 5)
    check_segments([], [], 5)


def test_a_single_class_is_label_one():
    label_map = torch.tensor([[0, 1], [255, 1]])
    first, second = foreground_targets([label_map, torch.zeros(1, 2, dtype=torch.int64)])
    assert_target(first, [0], [[[0, 1], [0, 1]]])
    assert (second.labels.shape, second.masks.shape) == ((0,), (0, 1, 2))


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8], ids=str)
def test_overlapping_instances_keep_their_areas(dtype):
    masks = [[[1, 1], [0, 0]], [[1, 0], [1, 0]]]
    labels = torch.tensor([4, 4], dtype=torch.int32)
    assert_target(instance_target(labels, torch.tensor(masks, dtype=dtype)), [4, 4], masks)


def test_segments_follow_the_map_and_void_belongs_to_none():
    segment_map = torch.tensor([[2, 2, -1], [0, -1, 2]], dtype=torch.int32)
    target = segment_target(segment_map, torch.tensor([7, 1, 7]))
    first, empty, last = [[0, 0, 0], [1, 0, 0]], [[0, 0, 0]] * 2, [[1, 1, 0], [0, 0, 1]]
    # The segment without a pixel stays, with its label, until it is dropped.
    assert_target(target, [7, 1, 7], [first, empty, last])
    assert_target(without_empty(target), [7, 7], [first, last])
    for labels in (NOTHING, torch.tensor([7, 1])):
        nothing = without_empty(segment_target(torch.full((2, 3), -1), labels))
        assert (nothing.labels.shape, nothing.masks.shape) == ((0,), (0, 2, 3))
        assert pad_target(nothing, (4, 4)).masks.shape == (0, 4, 4)


@pytest.mark.parametrize('wrong', [3, 255, -2])
def test_a_map_with_a_foreign_index_is_refused(wrong):
    segment_map = torch.tensor([[0, 1], [2, wrong]])
    lowest, highest = min(wrong, 0), max(wrong, 2)
    with pytest.raises(ValueError, match=f'{lowest} to {highest}; .* of its 3 labels and -1'):
        check_segments([segment_map], [torch.tensor([5, 6, 7])], 8)


def test_padding_belongs_to_no_mask_and_nothing_is_cropped():
    target = instance_target(torch.tensor([1]), torch.ones(1, 1, 2, dtype=torch.bool))
    assert_target(pad_target(target, (2, 3)), [1], [[[1, 1, 0], [0, 0, 0]]])
    assert pad_target(target, (1, 2)) is target
    for size in ((1, 1), (0, 2), (9, 1)):
        with pytest.raises(ValueError, match=f'1 x 2 do not fit an image of {size[0]} x {size[1]}'):
            pad_target(target, size)


def test_labels_that_are_no_class_are_named():
    check_labels(torch.tensor([0, 3, 3]), 4)
    check_labels(NOTHING, 1)
    with pytest.raises(ValueError, match=r'labels hold \[-1, 4\]; allowed are 0 to 3. Check num'):
        check_labels(torch.tensor([4, 0, -1, 4]), 4)
