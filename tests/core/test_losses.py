import math

import pytest
import torch
from torch.nn import functional as F

from mmseg_m2f.core import chunks
from mmseg_m2f.core.losses import ClassLoss, PointDiceLoss, PointMaskLoss

ONE = torch.tensor(1.0)


def test_class_loss_by_hand():
    # Three queries, two classes: probabilities of the right class 1/2, 1/4, 1/5.
    class_logits = torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.4, 0.4, 0.2]]]).log()
    classes = torch.tensor([[0, 1, 2]])
    loss = ClassLoss(2, weight=2.0, class_weight=[1.0, 3.0], no_object_weight=0.1)
    expected = (math.log(2) + 3 * math.log(4) + 0.1 * math.log(5)) / 4.1
    assert loss(class_logits, classes).item() == pytest.approx(2 * expected, rel=1e-6)
    expected = (math.log(2) + math.log(4) + 0.1 * math.log(5)) / 2.1
    assert ClassLoss(2)(class_logits, classes).item() == pytest.approx(2 * expected, rel=1e-6)


def test_class_weight_may_include_no_object_or_leave_it_out():
    assert ClassLoss(3).class_weight.tolist() == pytest.approx([1, 1, 1, 0.1])
    assert ClassLoss(2, class_weight=[2.0, 3.0]).class_weight.tolist() == pytest.approx([2, 3, 0.1])
    assert ClassLoss(2, class_weight=[2.0, 3.0, 4.0]).class_weight.tolist() == [2, 3, 4]
    assert not ClassLoss(2).state_dict()  # weights are settings, not part of a checkpoint


@pytest.mark.parametrize('length', [0, 1, 2, 5])
def test_class_weight_of_another_length_is_refused(length):
    with pytest.raises(
        ValueError, match=rf'num_classes \(3\) entries, or one more for no-object, got {length}'
    ):
        ClassLoss(3, class_weight=[1.0] * length)


def test_mask_losses_by_hand():
    # Two masks at two points: logits 0, and +-log 3 (probabilities 3/4 and 1/4).
    logits = torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    bce = math.log(2) + (math.log(4 / 3) + math.log(4)) / 2
    dice = (1 - (1 + 1) / (1 + 1 + 1)) + (1 - (2 + 1) / (1 + 2 + 1))
    num_masks = torch.tensor(3.0)
    assert PointMaskLoss(5.0)(logits, targets, num_masks).item() == pytest.approx(5 * bce / 3)
    assert PointDiceLoss(2.0)(logits, targets, num_masks).item() == pytest.approx(2 * dice / 3)


def test_mask_losses_of_soft_targets():
    logits, targets = torch.randn(3, 20).double(), torch.rand(3, 20).double()
    one = ONE.double()
    bce = F.binary_cross_entropy_with_logits(logits, targets) * 3
    torch.testing.assert_close(PointMaskLoss(1.0)(logits, targets, one), bce)
    ratio = [
        (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)
        for s, t in zip(logits.sigmoid(), targets, strict=True)
    ]
    torch.testing.assert_close(PointDiceLoss(1.0)(logits, targets, one), 3 - sum(ratio))


@pytest.mark.parametrize('weights', [{'no_object_weight': 0.0}, {'class_weight': [1.0, -1.0]}])
def test_weights_whose_mean_may_be_undefined_are_refused(weights):
    with pytest.raises(ValueError, match='must not be negative and that of no-object not 0'):
        ClassLoss(2, **weights)


@pytest.mark.parametrize('loss', [PointMaskLoss(), PointDiceLoss()], ids=['mask', 'dice'])
@pytest.mark.parametrize('rows', [1, 3, 7])
def test_chunks_of_masks_have_the_losses_of_all_together(loss, rows, monkeypatch):
    logits = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 5, 8, dtype=torch.float64)
    together = loss(logits, targets, ONE)
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', rows * 8 * 8)
    in_chunks = loss(logits, targets, ONE)
    torch.testing.assert_close(in_chunks, together, rtol=0, atol=1e-12)
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    one, other = (torch.autograd.grad(x @ weight, logits)[0] for x in (in_chunks, together))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
