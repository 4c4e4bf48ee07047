import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmseg_m2f.core.config import PixelDecoderConfig
from mmseg_m2f.core.layers import sine_encoding
from mmseg_m2f.core.pixel_decoder import EncoderLayer, MSDeformAttnPixelDecoder
from tests.core.builders import assert_checkpointing_is_exact_and_keeps_less
from tests.core.test_layers import assert_uniform

CHANNELS = (4, 6, 8, 10)


def make_decoder(num_levels=3, num_layers=1, in_channels=CHANNELS, attention=None, **switches):
    sizes = {'channels': 16, 'num_heads': 2, 'num_points': 2, 'ffn_dim': 24, 'norm_groups': 4}
    config = PixelDecoderConfig(num_levels=num_levels, num_layers=num_layers, **sizes, **switches)
    return MSDeformAttnPixelDecoder(in_channels, config, attention)


def make_maps(height, width, batch=2, in_channels=CHANNELS, dtype=torch.float32):
    return [
        torch.randn(batch, channels, -(-height // 2**i), -(-width // 2**i), dtype=dtype)
        for i, channels in enumerate(in_channels)
    ]


def flat(features):
    return [features.mask_features, *features.memory]


@torch.no_grad()
@pytest.mark.parametrize('size', [(37, 53), (8, 8), (1, 1), (5, 64)])
@pytest.mark.parametrize('num_levels', [2, 3, 4])
def test_shapes(size, num_levels):
    maps = make_maps(*size)
    features = make_decoder(num_levels)(maps)
    assert features.mask_features.shape == (2, 16, *size)
    assert features.mask_features.isfinite().all()
    coarsest_first = [(2, 16, *x.shape[-2:]) for x in reversed(maps)]
    assert [x.shape for x in features.memory] == coarsest_first[:num_levels]


@torch.no_grad()
def test_pyramid_adds_the_finer_maps_from_coarse_to_fine():
    # Equal numbers of channels would hide a wrong order from the shapes.
    decoder = make_decoder(num_levels=2, in_channels=(8, 8, 8, 8)).double()
    maps = make_maps(12, 20, in_channels=(8, 8, 8, 8), dtype=torch.float64)
    features = decoder(maps)

    def enlarge(x, like):
        return F.interpolate(x, like.shape[-2:], mode='bilinear', align_corners=False)

    stride_8 = decoder.lateral[1](maps[1]) + enlarge(features.memory[-1], maps[1])
    stride_8 = decoder.output[1](stride_8)
    stride_4 = decoder.output[0](decoder.lateral[0](maps[0]) + enlarge(stride_8, maps[0]))
    expected = decoder.mask_proj(stride_4)
    torch.testing.assert_close(features.mask_features, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_without_finer_maps_the_finest_memory_is_projected():
    decoder = make_decoder(num_levels=4)
    assert len(decoder.lateral) == len(decoder.output) == 0
    features = decoder(make_maps(8, 8))
    assert torch.equal(features.mask_features, decoder.mask_proj(features.memory[-1]))


class SpyAttention(nn.Module):
    """Adds nothing and remembers what it was given."""

    def forward(self, query, value, reference_points, level_shapes):
        self.seen = query, value, reference_points, level_shapes
        return torch.zeros_like(query)


@torch.no_grad()
def test_positions_and_level_embeddings_go_to_the_queries_only():
    decoder = make_decoder(attention=SpyAttention)
    maps = make_maps(8, 12)
    decoder(maps)
    query, value, reference_points, level_shapes = decoder.layers[0].attn.seen
    assert level_shapes == [(1, 2), (2, 3), (4, 6)]
    assert reference_points.shape == (2 + 6 + 24, 2)
    tokens = [
        projection(x).flatten(2).transpose(1, 2)
        for projection, x in zip(decoder.input_proj, maps[:0:-1], strict=True)
    ]
    assert torch.equal(value, torch.cat(tokens, dim=1))
    expected = [
        sine_encoding(shape, 16, device=value.device, dtype=value.dtype).flatten(1).T + embed
        for shape, embed in zip(level_shapes, decoder.level_embed, strict=True)
    ]
    torch.testing.assert_close(query - value, torch.cat(expected).expand_as(query))


@torch.no_grad()
def test_an_encoder_layer_normalizes_after_each_residual():
    layer = EncoderLayer(SpyAttention(), 16, 24)
    tokens = torch.randn(2, 5, 16)
    out = layer(tokens, torch.randn(5, 16), torch.rand(5, 2), [(1, 5)])
    middle = F.layer_norm(tokens, (16,))
    change = layer.ffn.linear2(layer.ffn.linear1(middle).relu())
    torch.testing.assert_close(out, F.layer_norm(middle + change, (16,)))


@torch.no_grad()
def test_the_whole_pass_is_float32_under_autocast():
    decoder, maps = make_decoder(), make_maps(9, 14)
    expected = decoder(maps)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert all(map(torch.equal, flat(decoder(maps)), flat(expected)))
        from_half = decoder([x.bfloat16() for x in maps])
    assert {x.dtype for x in flat(from_half)} == {torch.float32}


def test_mixed_precision_rounds_under_autocast_only_and_keeps_the_locations():
    exact, mixed = make_decoder(), make_decoder(mixed_precision=True)
    mixed.load_state_dict(exact.state_dict())
    maps, seen = make_maps(9, 14), []
    expected = flat(exact(maps))
    assert all(map(torch.equal, flat(mixed(maps)), expected))
    mixed.layers[0].attn.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = flat(mixed([x.bfloat16() for x in maps]))
    assert {x.dtype for x in seen[0][:3]} == {torch.float32}  # query, value, locations
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        assert not torch.equal(one, other)
        # Group and layer norms keep the values near one: bfloat16 has eight bits of them.
        assert (one - other).abs().mean() < 0.02 * other.abs().mean().clamp(min=1)
    got[0].sum().backward()
    assert all(parameter.grad is not None for parameter in mixed.output.parameters())


@torch.no_grad()
def test_images_of_a_batch_do_not_meet():
    decoder = make_decoder(num_layers=2).double()
    maps = make_maps(9, 14, batch=3, dtype=torch.float64)
    together = flat(decoder(maps))
    for i in range(3):
        alone = flat(decoder([x[i : i + 1] for x in maps]))
        images = [x[i : i + 1] for x in together]
        torch.testing.assert_close(alone, images, rtol=1e-11, atol=1e-11)


def test_parameter_names():
    parts = ['attn.sampling_offsets', 'attn.attention_weights', 'attn.value_proj']
    parts += ['attn.output_proj', 'norm1', 'ffn.linear1', 'ffn.linear2', 'norm2']
    parts = [f'layers.0.{part}' for part in parts]
    parts += [f'input_proj.{i}.{part}' for i in range(3) for part in ('conv', 'norm')]
    parts += ['lateral.0.norm', 'output.0.norm', 'mask_proj']
    names = {f'{part}.{kind}' for part in parts for kind in ('weight', 'bias')}
    rest = {'level_embed', 'lateral.0.conv.weight', 'output.0.conv.weight'}
    assert set(make_decoder(num_layers=1).state_dict()) == names | rest


def test_initial_law_and_the_maps_of_each_projection():
    decoder = MSDeformAttnPixelDecoder((48, 96, 12, 24), PixelDecoderConfig(num_layers=1))
    for projection, channels in zip(decoder.input_proj, (24, 12, 96), strict=True):
        assert_uniform(projection.conv.weight, math.sqrt(6 / (channels + 256)))
        assert not projection.conv.bias.any()
    assert_uniform(decoder.lateral[0].conv.weight, math.sqrt(3 / 48))
    assert_uniform(decoder.output[0].conv.weight, math.sqrt(3 / (9 * 256)))
    assert_uniform(decoder.mask_proj.weight, math.sqrt(3 / 256))
    assert not decoder.mask_proj.bias.any()
    # The optimizer decays it, as no nn.Embedding.
    assert type(decoder.level_embed) is nn.Parameter
    assert decoder.level_embed.shape == (3, 256)
    assert decoder.level_embed.std().item() == pytest.approx(1, rel=0.1)
    assert not any(isinstance(module, nn.Embedding) for module in decoder.modules())


def test_a_wrong_number_of_maps_is_refused():
    with pytest.raises(ValueError, match=r'attends to 3 levels, in_channels names only 2 maps'):
        MSDeformAttnPixelDecoder((8, 8))
    with pytest.raises(ValueError, match=r'built for 4 feature maps \(in_channels .*\), got 3'):
        make_decoder()(make_maps(8, 8)[1:])


def test_checkpointing_changes_no_bit_and_keeps_less():
    maps = make_maps(24, 32)
    plain, frugal = (make_decoder(num_layers=3, checkpointing=on) for on in (False, True))
    assert_checkpointing_is_exact_and_keeps_less(
        plain, frugal, lambda decoder: decoder(maps).memory[-1].square().sum()
    )
