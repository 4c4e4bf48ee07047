import math

import pytest
import torch

from mmseg_m2f.core import chunks
from mmseg_m2f.core.losses import ClassLoss, PointDiceLoss, PointMaskLoss
from tests.core.builders import pairwise_losses


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
    assert ClassLoss(2, class_weight=[2.0, 3.0]).class_weight.tolist() == pytest.approx([2, 3, 0.1])
    assert ClassLoss(2, class_weight=[2.0, 3.0, 4.0]).class_weight.tolist() == [2, 3, 4]
    assert not ClassLoss(2).state_dict()  # weights are settings, not part of a checkpoint


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'class_weight': []}, r'num_classes \(2\) entries, .*, got 0'),
        ({'class_weight': [1.0]}, r'num_classes \(2\) entries, or one more for no-object, got 1'),
        ({'class_weight': [1.0] * 4}, r'num_classes \(2\) entries, .*, got 4'),
        # With these the mean may be undefined.
        ({'no_object_weight': 0.0}, 'must not be negative and that of no-object not 0'),
        ({'class_weight': [1.0, -1.0]}, 'must not be negative and that of no-object not 0'),
    ],
)
def test_wrong_class_weights_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassLoss(2, **settings)


def test_mask_losses_by_hand():
    # Two masks at two points: logits 0, and +-log 3 (probabilities 3/4 and 1/4).
    logits = torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    bce = math.log(2) + (math.log(4 / 3) + math.log(4)) / 2
    dice = (1 - (1 + 1) / (1 + 1 + 1)) + (1 - (2 + 1) / (1 + 2 + 1))
    num_masks = torch.tensor(3.0)
    assert PointMaskLoss(5.0)(logits, targets, num_masks).item() == pytest.approx(5 * bce / 3)
    assert PointDiceLoss(2.0)(logits, targets, num_masks).item() == pytest.approx(2 * dice / 3)


@pytest.mark.parametrize('loss', [PointMaskLoss(1.0), PointDiceLoss(1.0)], ids=['mask', 'dice'])
@pytest.mark.parametrize('rows', [1, 3, 7, 100])
def test_any_chunks_of_masks_have_the_losses_of_each_alone(loss, rows, monkeypatch):
    logits = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 5, 8, dtype=torch.float64)
    kind = ('PointMaskLoss', 'PointDiceLoss').index(type(loss).__name__)
    alone = [pairwise_losses(*pair)[kind].trace() for pair in zip(logits, targets, strict=True)]
    monkeypatch.setattr(chunks, 'CHUNK_BYTES', rows * 8 * 8)
    in_chunks, alone = loss(logits, targets, torch.tensor(2.0)), torch.stack(alone) / 2
    torch.testing.assert_close(in_chunks, alone, rtol=0, atol=1e-12)
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    one, other = (torch.autograd.grad(x @ weight, logits)[0] for x in (in_chunks, alone))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
