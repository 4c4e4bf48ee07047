import pytest
import torch

from mmseg_m2f.core.targets import label_map_target


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
