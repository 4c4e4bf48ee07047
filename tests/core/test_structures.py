import torch

from mmseg_m2f.core.structures import mask_logits, upcast_half


def test_mask_logits_are_the_inner_product_over_channels():
    embed = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]])  # one image, two queries
    features = torch.tensor([[[[1.0, 0.0, 3.0]], [[10.0, 20.0, 30.0]]]])  # 2 channels of 1 x 3
    logits = mask_logits(embed, features)
    assert logits.tolist() == [[[[21.0, 40.0, 63.0]], [[-10.0, -20.0, -30.0]]]]


def test_mask_logits_work_with_and_without_batch_axes():
    embed, features = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 8, 5, 6)
    every = mask_logits(embed, features)
    assert every.shape == (2, 3, 4, 5, 6)
    torch.testing.assert_close(mask_logits(embed[1, 2], features[1, 2]), every[1, 2])


def test_upcast_half_changes_half_types_only():
    expected = {
        torch.float16: torch.float32,
        torch.bfloat16: torch.float32,
        torch.float32: torch.float32,
        torch.float64: torch.float64,
    }
    for given, kept in expected.items():
        assert upcast_half(torch.ones(2, dtype=given)).dtype == kept
    exact = torch.ones(2)
    assert upcast_half(exact) is exact
