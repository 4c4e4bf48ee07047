"""Every key has its counterpart, and a round trip gives back the very same tensors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.checkpoints import from_huggingface, to_huggingface
from mmseg_m2f.checkpoints.keymap import KeyMap, NameRule
from mmseg_m2f.checkpoints.swin import from_unfold_order, to_unfold_order

STAGES = ['stage1', 'stage2', 'stage3', 'stage4']
# Transformers' modules without counterpart: class weights of the loss, norm of a Swin classifier.
DROPPED = ('criterion.empty_weight', '.encoder.swin.layernorm.')


def small_huggingface(backbone: str) -> nn.Module:
    transformers = pytest.importorskip('transformers')
    config = {
        'resnet': lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], out_features=STAGES
        ),
        'swin': lambda: transformers.SwinConfig(
            embed_dim=8, depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 2], out_features=STAGES
        ),
    }[backbone]()
    config = transformers.Mask2FormerConfig(
        backbone_config=config, num_labels=3, num_queries=5, encoder_layers=1, decoder_layers=3
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape))
    return model


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('backbone', ['resnet', 'swin'])
def test_huggingface_live_model_and_file(backbone: str, tmp_path: Path) -> None:
    """Both spellings give the same tensors; ours goes back to exactly what the file holds."""
    safetensors = pytest.importorskip('safetensors.torch')
    model = small_huggingface(backbone)
    live = model.state_dict()
    model.save_pretrained(tmp_path)
    file = safetensors.load_file(tmp_path / 'model.safetensors')

    ours = from_huggingface(live)
    assert_same(from_huggingface(file), ours)
    kept = {key: value for key, value in file.items() if not _is_dropped(key)}
    assert_same(to_huggingface(ours), kept)
    assert all(_is_dropped(key) for key in file.keys() - kept.keys())

    own = [value for key, value in ours.items() if not key.endswith('relative_position_index')]
    expected = [value for key, value in live.items() if not _is_dropped(key)]
    assert sum(v.numel() for v in own) == sum(v.numel() for v in expected)


def _is_dropped(key: str) -> bool:
    live_key = key.replace('.encoder.layernorm.', '.encoder.swin.layernorm.')
    return any(part in live_key for part in DROPPED)


def test_patch_merging_order() -> None:
    """Both layouts of one merging layer give the same result on the same image."""
    channels = 3
    image = torch.randn(1, channels, 4, 6)
    weight = torch.randn(5, 4 * channels)
    blocks = torch.cat(
        [image[..., row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))], dim=1
    )
    official = weight @ blocks.flatten(2)
    unfolded = to_unfold_order(weight) @ F.unfold(image, 2, stride=2)
    torch.testing.assert_close(unfolded, official)
    assert torch.equal(from_unfold_order(to_unfold_order(weight)), weight)
    # Not an involution: converting twice is a silent error, never a no-op.
    assert not torch.equal(to_unfold_order(to_unfold_order(weight)), weight)


def test_a_rule_reads_in_both_directions() -> None:
    table = KeyMap([NameRule('a.{i}.{j}.*', ('b.{j}.c.{i}.*',))])
    ours, theirs = (
        {'a.1.20.out_proj.bias': torch.ones(1)},
        {'b.20.c.1.out_proj.bias': torch.ones(1)},
    )
    assert table.to_ours(theirs) == ours
    assert table.to_theirs(ours) == theirs


def test_a_name_may_not_end_in_a_number() -> None:
    """``*`` stands for parameters of one module, never for a whole list of modules."""
    with pytest.raises(ValueError, match='do not belong to this layout'):
        KeyMap([NameRule('a.*', ('b.*',))]).to_ours({'b.0.weight': torch.ones(1)})
