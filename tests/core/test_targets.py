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


def label_map_target(label_map, **keys):
    [target] = label_map_targets([label_map], **keys)
    return target


def test_one_mask_per_class_that_occurs_in_ascending_order():
    label_map = torch.tensor([[3, 3, 255], [0, 255, 3]])
    target = label_map_target(label_map, num_classes=4)
    assert target.labels.tolist() == [0, 3]
    assert target.labels.dtype == torch.int64
    assert target.masks.dtype == torch.bool
    assert target.masks.int().tolist() == [[[0, 0, 0], [1, 0, 0]], [[1, 1, 0], [0, 0, 1]]]


def test_ignored_pixels_belong_to_no_mask():
    label_map = torch.randint(0, 6, (20, 30))
    label_map[:, ::3] = 255
    target = label_map_target(label_map, num_classes=6)
    assert torch.equal(target.masks.sum(0), (label_map != 255).long())


@pytest.mark.parametrize('ignore_index', [255, 65, -1])
def test_a_map_of_the_ignore_label_gives_no_masks(ignore_index):
    label_map = torch.full((4, 5), ignore_index)
    target = label_map_target(label_map, num_classes=65, ignore_index=ignore_index)
    assert target.labels.shape == (0,)
    assert target.masks.shape == (0, 4, 5)


def test_masks_stay_at_one_byte_per_pixel():
    target = label_map_target(torch.arange(60).view(6, 10), num_classes=60)
    assert target.masks.element_size() == 1


def test_labels_out_of_range_are_named_with_what_is_allowed():
    label_map = torch.tensor([[0, 4], [-2, 255]])
    with pytest.raises(
        ValueError,
        match=r'label map holds \[-2, 4\]; allowed are 0 to 3 and the '
        r'ignore label 255',
    ):
        label_map_target(label_map, num_classes=4)
    with pytest.raises(ValueError, match='reduce_zero_label'):
        label_map_target(torch.tensor([[255, 0]]), num_classes=4, ignore_index=254)


@pytest.mark.parametrize('wrong', [-2, -1, 4, 5])
def test_a_single_label_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=rf'label map holds \[{wrong}\]'):
        label_map_target(torch.tensor([[0, 3], [wrong, 255]]), num_classes=4)


@pytest.mark.parametrize('dtype', [torch.int16, torch.int64], ids=str)
def test_many_maps_are_waited_for_once(dtype):
    maps = [torch.randint(0, 5, size).to(dtype) for size in ((4, 6), (7, 3), (1, 1))]
    maps.append(torch.full((2, 2), 255, dtype=torch.int64).to(dtype))
    with Watch() as watch:
        targets = label_map_targets(maps, 5)
    assert watch.waits == []  # but for the list of what is there, which .tolist() asks for
    for label_map, target in zip(maps, targets, strict=True):
        present = [label for label in range(5) if (label_map == label).any()]
        assert target.labels.tolist() == present
        for label, mask in zip(present, target.masks, strict=True):
            assert torch.equal(mask, label_map == label)
    assert label_map_targets([], 5) == []


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
    check_segments([good, good - 1], [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)], 5)
    check_segments([], [], 5)


def test_a_single_class_is_label_one():
    label_map = torch.tensor([[0, 1], [255, 1]])
    first, second = foreground_targets([label_map, torch.zeros(1, 2, dtype=torch.int64)])
    assert first.labels.tolist() == [0]
    assert first.masks.int().tolist() == [[[0, 1], [0, 1]]]
    assert (second.labels.shape, second.masks.shape) == ((0,), (0, 1, 2))


def test_overlapping_instances_keep_their_areas():
    masks = torch.zeros(2, 5, 6, dtype=torch.bool)
    masks[0, :3], masks[1, :, :4] = True, True
    target = instance_target(torch.tensor([4, 4], dtype=torch.int32), masks)
    assert target.labels.dtype == torch.int64
    assert target.masks.sum((1, 2)).tolist() == [18, 20]
    as_bytes = instance_target(torch.tensor([4, 4]), masks.byte())
    assert as_bytes.masks.dtype == torch.bool
    assert torch.equal(as_bytes.masks, masks)


def test_segments_follow_the_map_and_void_belongs_to_none():
    segment_map = torch.tensor([[2, 2, -1], [0, -1, 2]], dtype=torch.int32)
    target = segment_target(segment_map, torch.tensor([7, 1, 7]))
    # The segment without a pixel stays, with its label.
    assert target.labels.tolist() == [7, 1, 7]
    assert target.masks.int().tolist() == [
        [[0, 0, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
        [[1, 1, 0], [0, 0, 1]],
    ]
    assert target.masks.dtype == torch.bool


def test_masks_without_a_pixel_can_be_dropped():
    segment_map = torch.tensor([[2, 2, -1], [0, -1, 2]])
    target = without_empty(segment_target(segment_map, torch.tensor([7, 1, 3])))
    assert target.labels.tolist() == [7, 3]
    assert target.masks.sum((1, 2)).tolist() == [1, 3]
    nothing = without_empty(segment_target(torch.full((2, 3), -1), torch.tensor([7, 1])))
    assert (nothing.labels.shape, nothing.masks.shape) == ((0,), (0, 2, 3))


def test_a_map_without_segments_gives_no_masks():
    target = segment_target(torch.full((2, 3), -1), torch.zeros(0, dtype=torch.int64))
    assert target.masks.shape == (0, 2, 3)
    assert without_empty(target).masks.shape == (0, 2, 3)
    assert pad_target(target, (4, 4)).masks.shape == (0, 4, 4)


@pytest.mark.parametrize('wrong', [3, 255, -2])
def test_a_map_with_a_foreign_index_is_refused(wrong):
    segment_map = torch.tensor([[0, 1], [2, wrong]])
    lowest, highest = min(wrong, 0), max(wrong, 2)
    with pytest.raises(ValueError, match=f'{lowest} to {highest}; .* of its 3 labels and -1'):
        check_segments([segment_map], [torch.tensor([5, 6, 7])], 8)


def test_padding_belongs_to_no_mask():
    target = instance_target(torch.tensor([1]), torch.ones(1, 2, 3, dtype=torch.bool))
    padded = pad_target(target, (4, 5))
    assert padded.labels.tolist() == [1]
    assert padded.masks.shape == (1, 4, 5)
    assert padded.masks[0, :2, :3].all()
    assert padded.masks.sum() == 6
    assert pad_target(target, (2, 3)) is target


@pytest.mark.parametrize('size', [(1, 3), (2, 2), (1, 9)])
def test_masks_are_never_cropped_in_silence(size):
    target = instance_target(torch.tensor([1]), torch.ones(1, 2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=f'2 x 3 do not fit an image of {size[0]} x {size[1]}'):
        pad_target(target, size)


def test_labels_that_are_no_class_are_named():
    check_labels(torch.tensor([0, 3, 3]), 4)
    check_labels(torch.zeros(0, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match=r'labels hold \[-1, 4\]; allowed are 0 to 3. Check num'):
        check_labels(torch.tensor([4, 0, -1, 4]), 4)
