"""``from_pretrained`` reads the weights and settings that we export, and we read its files."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mmseg_m2f.adapters.checkpoints.convert_file import convert_checkpoint
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.loader import read_checkpoint
from mmseg_m2f.adapters.checkpoints.write import save_weights
from mmseg_m2f.checkpoints import from_huggingface, huggingface_config, to_huggingface
from tests.checkpoints.published_names import assert_same

transformers = pytest.importorskip('transformers')

from tests.parity.parity_weights import redraw  # noqa: E402

CLASSES = ['wall', 'sky', 'car']
OUTPUTS = {'out_features': ['stage1', 'stage2', 'stage3', 'stage4']}
SWIN = {'embed_dim': 8, 'num_heads': [1, 2, 4, 8], 'window_size': 4, 'mlp_ratio': 2.0}
BACKBONES = {
    'swin': (transformers.SwinConfig, {**SWIN, 'depths': [1, 2, 1, 1]}),
    'bottleneck': (
        transformers.ResNetConfig,
        {'embedding_size': 8, 'hidden_sizes': [16, 32, 64, 128], 'depths': [1, 2, 1, 1]},
    ),
    'basic': (
        transformers.ResNetConfig,
        {'embedding_size': 8, 'hidden_sizes': [8, 16, 32, 64], 'depths': [2, 1, 1, 1]}
        | {'layer_type': 'basic'},
    ),
}
# The classifier's norm of a Swin, which no segmentor reads, and the losses' weights.
DROPPED = ('criterion.empty_weight', 'layernorm.weight', 'layernorm.bias')


def is_dropped(key: str) -> bool:
    return key.endswith(DROPPED) and '.decoder.' not in key


def build(backbone: str) -> nn.Module:
    """No two settings are equal or their defaults."""
    kind, settings = BACKBONES[backbone]
    config = transformers.Mask2FormerConfig(
        backbone_config=kind(**settings, **OUTPUTS),
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        encoder_feedforward_dim=24,
        dim_feedforward=40,
        num_queries=7,
        num_labels=len(CLASSES),
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    redraw(model)
    return model


@pytest.mark.parametrize('backbone', BACKBONES)
@torch.no_grad()
def test_from_pretrained_reads_what_we_export(backbone: str, tmp_path: Path) -> None:
    model, meta = build(backbone), {'dataset_meta': {'classes': CLASSES}}
    save_weights(from_huggingface(model.state_dict()), tmp_path / 'ours.pth', meta)
    folder = tmp_path / 'exported'
    for _ in range(2):  # over its own
        convert_checkpoint(tmp_path / 'ours.pth', folder / 'model.safetensors', target='hf')
    assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors']
    loaded, report = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert all(is_dropped(key) for key in report['missing_keys'])
    assert not report['unexpected_keys']
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    images = torch.randn(1, 3, 64, 96)
    ours, theirs = loaded.eval()(images), model(images)
    for name in ('class_queries_logits', 'masks_queries_logits'):
        assert torch.equal(ours[name], theirs[name])
    # The names of the classes go both ways.
    convert_checkpoint(folder, tmp_path / 'back.pth')
    assert read_checkpoint(tmp_path / 'back.pth')['meta']['dataset_meta']['classes'] == CLASSES


@pytest.mark.parametrize('backbone', BACKBONES)
def test_a_live_model_and_its_file(backbone: str, tmp_path: Path) -> None:
    """Both spellings give the same tensors; ours goes back to exactly what the file holds."""
    model = build(backbone)
    model.save_pretrained(tmp_path)
    live, file = model.state_dict(), read_checkpoint(tmp_path)['state_dict']
    ours = from_huggingface(live)
    assert_same(from_huggingface(file), ours)
    assert_same(to_huggingface(ours), {k: v for k, v in file.items() if not is_dropped(k)})
    own = [value for key, value in ours.items() if not key.endswith('relative_position_index')]
    expected = [value for key, value in live.items() if not is_dropped(key)]
    assert sum(v.numel() for v in own) == sum(v.numel() for v in expected)


def test_models_that_huggingface_cannot_have() -> None:
    state = to_huggingface(from_huggingface(build('basic').state_dict()))
    with pytest.raises(ValueError, match='3 classes, 2 names'):
        huggingface_config(state, ['wall', 'sky'])
    two_levels = {**state, 'model.transformer_module.level_embed.weight': torch.zeros(2, 64)}
    with pytest.raises(ValueError, match='has 3 levels, this one 2'):
        huggingface_config(two_levels)
    flat = {key: value for key, value in state.items() if '.decoder.encoder.layers.' not in key}
    with pytest.raises(ValueError, match='the pixel decoder has no layers'):
        huggingface_config(flat)


def test_the_config_of_another_model_stays(tmp_path: Path) -> None:
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    save_weights(from_huggingface(build('basic').state_dict()), tmp_path / 'ours.pth')
    with pytest.raises(CheckpointError, match=r'config\.json exists and belongs to another model'):
        convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'model.safetensors', target='hf')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'ours.pth']
    convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'weights.safetensors', target='hf')
