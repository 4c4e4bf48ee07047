import torch

from mmseg_m2f.core.structures import mask_logits, upcast_half


def test_mask_logits_are_the_inner_product_over_channels():
    embed = torch.tensor([[1.0, 2.0], [0.0, -1.0]])  # two queries
    features = torch.tensor([[[1.0, 0.0, 3.0]], [[10.0, 20.0, 30.0]]])  # 2 channels of 1 x 3
    expected = torch.tensor([[[21.0, 40.0, 63.0]], [[-10.0, -20.0, -30.0]]])
    assert torch.equal(mask_logits(embed, features), expected)
    batch = mask_logits(embed.expand(3, 4, 2, 2), features.expand(3, 4, 2, 1, 3))
    assert torch.equal(batch, expected.expand(3, 4, 2, 1, 3))


def test_upcast_half_changes_half_types_only():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert upcast_half(torch.ones(2, dtype=dtype)).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        exact = torch.ones(2, dtype=dtype)
        assert upcast_half(exact) is exact
