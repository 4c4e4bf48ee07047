from functools import partial

import pytest
import torch
from torch.nn import functional as F

from mmseg_m2f.core.postprocess import resize_masks, semantic_scores


def naive_scores(class_logits, mask_logits, size):
    """Query by query, straight from the formula."""
    probs = class_logits.softmax(-1)[:, :-1]
    full = F.interpolate(mask_logits[:, None], size=size, mode='bilinear', align_corners=False)
    scores = torch.zeros(probs.shape[1], *size, dtype=full.dtype)
    for query, mask in enumerate(full[:, 0]):
        for label in range(probs.shape[1]):
            scores[label] += probs[query, label] / (1 + torch.exp(-mask))
    return scores


def test_scores_by_hand():
    # Probabilities over two classes and no-object: (1/2, 1/4, 1/4) and (0, 1/2, 1/2).
    class_logits = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]).log()
    mask_logits = torch.tensor([[[0.0, 100.0]], [[-100.0, 0.0]]])
    scores = semantic_scores(class_logits, mask_logits, partial(resize_masks, size=(1, 2)))
    torch.testing.assert_close(scores, torch.tensor([[[0.25, 0.5]], [[0.125, 0.5]]]))


@pytest.mark.parametrize('num_queries', [1, 24, 25, 26, 60])
def test_chunks_of_queries_do_not_change_the_scores(num_queries):
    class_logits = torch.randn(num_queries, 5, dtype=torch.float64)
    mask_logits = 3 * torch.randn(num_queries, 7, 9, dtype=torch.float64)
    got = semantic_scores(class_logits, mask_logits, partial(resize_masks, size=(29, 35)))
    expected = naive_scores(class_logits, mask_logits, (29, 35))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_one_class_is_a_probability_map_of_its_own():
    scores = semantic_scores(
        torch.tensor([[0.0, 0.0]]), torch.zeros(1, 2, 2), partial(resize_masks, size=(4, 4))
    )
    torch.testing.assert_close(scores, torch.full((1, 4, 4), 0.25))


def test_scores_lie_between_zero_and_the_number_of_queries():
    scores = semantic_scores(
        9 * torch.randn(30, 4), 9 * torch.randn(30, 5, 5), partial(resize_masks, size=(11, 13))
    )
    assert scores.min() >= 0
    assert scores.max() <= 30


@pytest.mark.parametrize('size', [(6, 8), (24, 32)])
def test_inputs_are_not_changed(size):
    # Resizing to the same size must not hand back the input itself: the sigmoid works in place.
    class_logits, mask_logits = torch.randn(3, 4), torch.randn(3, 6, 8)
    before = class_logits.clone(), mask_logits.clone()
    semantic_scores(class_logits, mask_logits, partial(resize_masks, size=size))
    assert torch.equal(class_logits, before[0])
    assert torch.equal(mask_logits, before[1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    class_logits, mask_logits = torch.randn(8, 4).to(dtype), torch.randn(8, 6, 8).to(dtype)
    got = semantic_scores(class_logits, mask_logits, partial(resize_masks, size=(24, 32)))
    expected = semantic_scores(
        class_logits.float(), mask_logits.float(), partial(resize_masks, size=(24, 32))
    )
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
