from collections.abc import Sequence

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, PixelData
from torch import nn

from mmseg_m2f.adapters.models.tta import SemanticTTAModel


class Segmentor(BaseModel):
    """Scores are a 1 x 1 convolution of the image: it commutes with a flip, to the bit.

    Like mmseg's segmentor it flips the scores of a flipped view back, and hands out a sigmoid
    for a single class.
    """

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.decode_head = nn.Module()
        self.decode_head.threshold = 0.6
        self.seen: list[torch.Tensor] = []

    def test_step(self, data):
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            scale = torch.arange(1.0, self.num_classes + 1)[:, None, None]
            scores = (image.float().mean(0) * scale).sin().abs()
            scores = scores.flip(-1) if sample.flip else scores
            decision = scores.argmax(0, keepdim=True)
            if self.num_classes == 1:
                scores = scores.sigmoid()
                decision = (scores > self.decode_head.threshold).to(scores)
            sample.seg_logits, sample.pred_sem_seg = (
                PixelData(data=scores),
                PixelData(data=decision),
            )
            self.seen.append(scores)
        return data['data_samples']

    def forward(self, inputs, data_samples=None, mode='tensor'):
        raise NotImplementedError


def sample(flip: bool = False, **fields) -> BaseDataElement:
    return BaseDataElement(metainfo={'flip': flip}, **fields)


def views(*images: torch.Tensor, flips: Sequence[bool] = (False,) * 5) -> dict:
    """Return what the loader hands out: a list over views of lists over images (here one)."""
    samples = [[sample(flip)] for flip in flips]
    return {'inputs': [[image] for image in images], 'data_samples': samples}


def alone(image: torch.Tensor, num_classes: int = 3) -> BaseDataElement:
    return Segmentor(num_classes).test_step({'inputs': [image], 'data_samples': [sample()]})[0]


@pytest.mark.parametrize('count', [1, 2, 3, 7, 12])
@pytest.mark.parametrize('num_classes', [1, 3])
def test_equal_views_every_other_one_flipped_give_the_plain_result(count, num_classes):
    image = torch.rand(3, 5, 7) * 9
    flips = [index % 2 == 1 for index in range(count)]
    data = views(*(image.flip(-1) if flip else image for flip in flips), flips=flips)
    [merged] = SemanticTTAModel(Segmentor(num_classes)).test_step(data)
    plain = alone(image, num_classes)
    assert torch.equal(merged.seg_logits.data, plain.seg_logits.data)
    assert torch.equal(merged.pred_sem_seg.data, plain.pred_sem_seg.data)
    assert merged.pred_sem_seg.data.dtype == plain.pred_sem_seg.data.dtype


def test_merged_scores_are_the_plain_mean_and_decide():
    images, segmentor = [torch.rand(3, 4, 6) * 9 for _ in range(5)], Segmentor()
    model = SemanticTTAModel(segmentor)
    plain = [alone(image).seg_logits.data for image in images]
    mean = torch.stack(plain).mean(0)
    for [merged] in (model.test_step(views(*images)), model.merge_preds([map(alone, images)])):
        torch.testing.assert_close(merged.seg_logits.data, mean)
        assert torch.equal(merged.pred_sem_seg.data, mean.argmax(0, keepdim=True))
    # The maps belong to the segmentor and are not averaged in place.
    assert all(torch.equal(a, b) for a, b in zip(segmentor.seen, plain, strict=True))


def test_images_of_a_batch_are_merged_apart_and_keep_their_ground_truth():
    images = [torch.rand(3, 4, 6) * 9, torch.rand(3, 5, 3) * 9]
    truth = PixelData(data=torch.ones(1, 4, 6))
    samples = [[sample(gt_sem_seg=truth), sample()] for _ in range(3)]
    model = SemanticTTAModel(Segmentor())
    merged = model.test_step({'inputs': [images] * 3, 'data_samples': samples})
    for result, image in zip(merged, images, strict=True):
        assert torch.equal(result.seg_logits.data, alone(image).seg_logits.data)
    assert ['gt_sem_seg' in result for result in merged] == [True, False]
    assert torch.equal(merged[0].gt_sem_seg.data, truth.data)


def test_no_view_is_an_error():
    with pytest.raises(ValueError, match='tta_pipeline'):
        SemanticTTAModel(Segmentor()).test_step({'inputs': [], 'data_samples': []})
