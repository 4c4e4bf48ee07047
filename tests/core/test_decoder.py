import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmseg_m2f.core.config import DecoderConfig
from mmseg_m2f.core.decoder import MaskedAttentionDecoder, attention_mask
from mmseg_m2f.core.layers import sine_encoding
from mmseg_m2f.core.structures import PixelFeatures, mask_logits
from tests.core.builders import assert_checkpointing_is_exact_and_keeps_less
from tests.core.test_layers import assert_uniform

SIZES = ((2, 3), (4, 6), (7, 11))  # coarsest first; the finest is odd


def make_decoder(num_layers=4, num_levels=3, **settings):
    sizes = {'num_classes': 5, 'channels': 16, 'num_queries': 7, 'num_heads': 2, 'ffn_dim': 24}
    config = DecoderConfig(**sizes, num_layers=num_layers, num_levels=num_levels, **settings)
    return MaskedAttentionDecoder(config)


def make_features(num_levels=3, dtype=torch.float32):
    mask_features = torch.randn(2, 16, 14, 21, dtype=dtype)
    memory = [torch.randn(2, 16, *size, dtype=dtype) for size in SIZES[:num_levels]]
    return PixelFeatures(mask_features, tuple(memory))


def resized(maps, size):
    return F.interpolate(maps, size, mode='bilinear', align_corners=False)


def slow_decode(decoder, features):
    """The paper's loop with nn.MultiheadAttention and full-size masks, image by image."""

    def attend(attention, query, key, value, blocked=None):
        twin = nn.MultiheadAttention(16, 2, batch_first=True, dtype=query.dtype)
        twin.load_state_dict(attention.state_dict())
        return twin(query[None], key[None], value[None], attn_mask=blocked)[0][0]

    def heads(x, mask_features):
        x = decoder.norm(x)
        first, second, last = decoder.mask_embed
        embed = last(second(first(x).relu()).relu())
        masks = torch.stack([(q[:, None, None] * mask_features).sum(0) for q in embed])
        return decoder.class_embed(x), masks

    predictions = []
    for i, mask_features in enumerate(features.mask_features):
        x = decoder.query_feat.weight
        predictions.append([heads(x, mask_features)])
        for index, layer in enumerate(decoder.layers):
            level = index % len(features.memory)
            memory = features.memory[level][i]
            size = memory.shape[-2:]
            small = resized(predictions[-1][-1][1][None], size)
            blocked = (small[0].sigmoid() < 0.5).flatten(1)
            blocked[blocked.all(1)] = False
            position = sine_encoding(size, 16, device=memory.device, dtype=memory.dtype)
            value = memory.flatten(1).T + decoder.level_embed.weight[level]
            key, query = value + position.flatten(1).T, x + decoder.query_embed.weight
            x = layer.cross_norm(x + attend(layer.cross_attn, query, key, value, blocked))
            query = x + decoder.query_embed.weight
            x = layer.self_norm(x + attend(layer.self_attn, query, query, x))
            hidden = layer.ffn.linear1(x).relu()
            x = layer.ffn_norm(x + layer.ffn.linear2(hidden))
            predictions[-1].append(heads(x, mask_features))
    return predictions


@torch.no_grad()
@pytest.mark.parametrize('num_levels', [1, 2, 3])
def test_every_prediction_equals_the_slow_implementation(num_levels):
    decoder = make_decoder(num_layers=5, num_levels=num_levels).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = make_features(num_levels, torch.float64)
    predictions = decoder(features)
    for i, expected in enumerate(slow_decode(decoder, features)):
        assert len(expected) == len(predictions) == 6
        for (class_logits, embed), wanted in zip(predictions, expected, strict=True):
            got = class_logits[i], mask_logits(embed[i], features.mask_features[i])
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('logits', 'may_attend'),
    [
        ([-1.0, 2.0, -0.1, 0.5], [False, True, False, True]),
        ([-1.0, 0.0, -0.0, math.nan], [False, True, True, True]),
        ([-1.0, -2.0, -3.0, -4.0], [True, True, True, True]),  # an empty mask
    ],
)
def test_negative_logits_block_but_not_all_of_them(logits, may_attend):
    # The second query's mask is not empty: it decides nothing for the first.
    embed, features = torch.tensor([[[1.0], [-1.0]]]), torch.tensor(logits).view(1, 1, 1, -1)
    mask = attention_mask(embed, features)
    assert mask.shape == (1, 1, 2, 4)
    assert mask[0, 0, 0].tolist() == may_attend


@pytest.mark.parametrize(
    ('dtype', 'flips'), [(torch.float64, 0), (torch.float32, 3)], ids=['float64', 'float32']
)
def test_pooling_features_commutes_with_resizing_mask_logits(dtype, flips):
    """The official order forms full mask logits, resizes them, and compares the sigmoid with one
    half. Of 240 000 bits none may differ in float64; in float32 only bits whose logit is within
    rounding (1e-5 of logits of size 5.6) of zero may."""
    embed, features = torch.randn(2, 100, 32, dtype=dtype), torch.randn(2, 32, 64, 80, dtype=dtype)
    logits = resized(mask_logits(embed, features), (30, 40)).flatten(2)
    differs = attention_mask(embed, resized(features, (30, 40)))[:, 0] != (logits.sigmoid() >= 0.5)
    assert differs.sum() <= flips
    assert (logits[differs].abs() < 1e-5).all()


def test_the_mask_is_computed_in_float32_under_autocast():
    embed, pooled = torch.randn(1, 50, 32), torch.randn(1, 32, 30, 30)
    expected = attention_mask(embed, pooled)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(attention_mask(embed, pooled), expected)
        half = attention_mask(embed.bfloat16(), pooled)
    assert torch.equal(half, attention_mask(embed.bfloat16().float(), pooled))


@torch.no_grad()
def test_predict_gives_the_last_prediction_bit_for_bit_and_no_other():
    decoder, features, calls = make_decoder(), make_features(), []
    last = decoder(features)[-1]
    decoder.class_embed.register_forward_hook(lambda *_: calls.append(1))
    assert all(map(torch.equal, decoder.predict(features), last))
    assert len(calls) == 1


def test_no_gradient_flows_through_attention_masks():
    decoder, features = make_decoder(), make_features()
    features.mask_features.requires_grad_()
    decoder(features)[-1].class_logits.sum().backward()
    assert features.mask_features.grad is None
    assert all(parameter.grad is None for parameter in decoder.mask_embed.parameters())


def test_parameter_names_and_which_are_embeddings():
    decoder = make_decoder(num_layers=1)
    norms = ['cross_norm', 'self_norm', 'ffn_norm']
    linear = ['cross_attn.out_proj', 'self_attn.out_proj', 'ffn.linear1', 'ffn.linear2']
    heads = ['norm', 'class_embed', 'mask_embed.0', 'mask_embed.1', 'mask_embed.2']
    parts = [*heads, *(f'layers.0.{name}' for name in norms + linear)]
    names = {f'{part}.{kind}' for part in parts for kind in ('weight', 'bias')}
    for attention in ('cross_attn', 'self_attn'):
        names |= {f'layers.0.{attention}.in_proj_{kind}' for kind in ('weight', 'bias')}
    # The optimizer exempts exactly these from weight decay by their type.
    tables = {name for name, module in decoder.named_modules() if isinstance(module, nn.Embedding)}
    assert tables == {'query_feat', 'query_embed', 'level_embed'}
    assert set(decoder.state_dict()) == names | {f'{table}.weight' for table in tables}


def test_initial_law():
    decoder = MaskedAttentionDecoder(DecoderConfig(num_classes=19, num_layers=1))
    for table in (decoder.query_feat, decoder.query_embed):
        assert table.weight.std().item() == pytest.approx(1, rel=0.05)
    for linear in [decoder.class_embed, *decoder.mask_embed]:
        assert_uniform(linear.weight, 1 / 16)  # PyTorch's default: 1 / sqrt(256)
        assert linear.bias.any()


def test_a_wrong_number_of_levels_is_refused():
    with pytest.raises(ValueError, match='built for 3 levels, the pixel decoder gave 2'):
        make_decoder()(make_features(num_levels=2))


def test_checkpointing_changes_no_bit_and_keeps_less():
    features = make_features()
    plain, frugal = (make_decoder(checkpointing=on) for on in (False, True))
    assert_checkpointing_is_exact_and_keeps_less(
        plain, frugal, lambda decoder: decoder.predict(features).mask_embed.square().sum()
    )
