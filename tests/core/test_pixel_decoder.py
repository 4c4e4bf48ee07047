import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmseg_m2f.core.config import PixelDecoderConfig
from mmseg_m2f.core.layers import sine_encoding
from mmseg_m2f.core.pixel_decoder import EncoderLayer, MSDeformAttnPixelDecoder
from tests.core.test_layers import assert_uniform
from tests.core.watching import gradients_and_saved_bytes

CHANNELS = (4, 6, 8, 10)


def make_decoder(num_levels=3, num_layers=1, in_channels=CHANNELS, attention=None, **switches):
    config = PixelDecoderConfig(
        channels=16,
        num_layers=num_layers,
        num_heads=2,
        num_points=2,
        num_levels=num_levels,
        ffn_dim=24,
        norm_groups=4,
        **switches,
    )
    return MSDeformAttnPixelDecoder(in_channels, config, attention)


def make_maps(height, width, batch=2, in_channels=CHANNELS, dtype=torch.float32):
    return [
        torch.randn(batch, channels, -(-height // 2**i), -(-width // 2**i), dtype=dtype)
        for i, channels in enumerate(in_channels)
    ]


@torch.no_grad()
@pytest.mark.parametrize('size', [(37, 53), (8, 8), (1, 1), (5, 64)])
@pytest.mark.parametrize('num_levels', [2, 3, 4])
def test_shapes(size, num_levels):
    maps = make_maps(*size)
    features = make_decoder(num_levels)(maps)
    assert features.mask_features.shape == (2, 16, *size)
    assert len(features.memory) == num_levels
    for memory, given in zip(features.memory, reversed(maps), strict=False):  # coarsest first
        assert memory.shape == (2, 16, *given.shape[-2:])
    assert features.mask_features.isfinite().all()


@torch.no_grad()
def test_pyramid_adds_the_finer_maps_from_coarse_to_fine():
    decoder = make_decoder(num_levels=2).double()
    maps = make_maps(12, 20, dtype=torch.float64)
    features = decoder(maps)

    def enlarge(x, like):
        return F.interpolate(x, like.shape[-2:], mode='bilinear', align_corners=False)

    stride_8 = decoder.lateral[1](maps[1]) + enlarge(features.memory[-1], maps[1])
    stride_8 = decoder.output[1](stride_8)
    stride_4 = decoder.output[0](decoder.lateral[0](maps[0]) + enlarge(stride_8, maps[0]))
    expected = decoder.mask_proj(stride_4)
    torch.testing.assert_close(features.mask_features, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_each_lateral_sees_its_own_map():
    # Equal channel counts would hide a wrong order, so switch the laterals off one by one.
    for index in (0, 1):
        decoder = make_decoder(num_levels=2, in_channels=(8, 8, 8, 8))
        decoder.lateral[index].conv.weight.zero_()
        maps = make_maps(8, 8, in_channels=(8, 8, 8, 8))
        before = decoder(maps).mask_features
        for changed in (0, 1):
            others = [x + (i == changed) * torch.randn_like(x) for i, x in enumerate(maps)]
            same = torch.equal(decoder(others).mask_features, before)
            assert same == (changed == index)


@torch.no_grad()
def test_without_finer_maps_the_finest_memory_is_projected():
    decoder = make_decoder(num_levels=4)
    assert len(decoder.lateral) == len(decoder.output) == 0
    features = decoder(make_maps(8, 8))
    assert torch.equal(features.mask_features, decoder.mask_proj(features.memory[-1]))


def test_projections_follow_the_maps_from_the_coarsest():
    decoder = make_decoder(num_levels=2)
    assert [block.conv.in_channels for block in decoder.input_proj] == [10, 8]
    assert [block.conv.in_channels for block in decoder.lateral] == [4, 6]


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
def test_an_encoder_layer_normalises_after_each_residual():
    layer = EncoderLayer(SpyAttention(), 16, 24)
    tokens = torch.randn(2, 5, 16)
    out = layer(tokens, torch.randn(5, 16), torch.rand(5, 2), [(1, 5)])
    middle = F.layer_norm(tokens, (16,))
    change = layer.ffn.linear2(layer.ffn.linear1(middle).relu())
    torch.testing.assert_close(out, F.layer_norm(middle + change, (16,)))


def assert_equal(features, others):
    assert torch.equal(features.mask_features, others.mask_features)
    assert all(map(torch.equal, features.memory, others.memory))


@torch.no_grad()
def test_the_whole_pass_is_float32_under_autocast():
    decoder, maps = make_decoder(), make_maps(9, 14)
    expected = decoder(maps)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = decoder(maps)
        from_half = decoder([x.bfloat16() for x in maps])
    assert_equal(got, expected)
    assert from_half.mask_features.dtype == torch.float32
    assert {x.dtype for x in from_half.memory} == {torch.float32}


def test_mixed_precision_rounds_under_autocast_only_and_keeps_the_locations():
    exact, mixed = make_decoder(), make_decoder(mixed_precision=True)
    mixed.load_state_dict(exact.state_dict())
    maps, seen = make_maps(9, 14), []
    assert_equal(exact(maps), mixed(maps))
    mixed.layers[0].attn.register_forward_pre_hook(lambda _, args: seen.append(args))
    expected = exact(maps)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = mixed([x.bfloat16() for x in maps])
    query, value, reference_points, _ = seen[0]
    assert {x.dtype for x in (query, value, reference_points)} == {torch.float32}
    for one, other in zip(
        [got.mask_features, *got.memory], [expected.mask_features, *expected.memory], strict=True
    ):
        assert one.dtype == torch.float32
        assert not torch.equal(one, other)
        # Group and layer norms keep the values near one: bfloat16 has eight bits of them.
        assert (one - other).abs().mean() < 0.02 * other.abs().mean().clamp(min=1)
    got.mask_features.sum().backward()
    assert all(parameter.grad is not None for parameter in mixed.output.parameters())


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one():
    decoder = make_decoder(num_layers=2).double()
    maps = make_maps(9, 14, batch=3, dtype=torch.float64)
    together = decoder(maps)
    for i in range(3):
        alone = decoder([x[i : i + 1] for x in maps])
        for one, other in zip(
            [alone.mask_features, *alone.memory],
            [together.mask_features, *together.memory],
            strict=True,
        ):
            torch.testing.assert_close(one[0], other[i], rtol=1e-11, atol=1e-11)


def test_level_embed_is_a_bare_parameter():
    # The optimiser tells it from the decoder's nn.Embedding: this one is decayed.
    decoder = MSDeformAttnPixelDecoder((8, 8, 8, 8))
    assert type(decoder.level_embed) is nn.Parameter
    assert decoder.level_embed.shape == (3, 256)
    assert decoder.level_embed.std().item() == pytest.approx(1, rel=0.1)
    assert not any(isinstance(module, nn.Embedding) for module in decoder.modules())


def test_parameter_names():
    names = set(make_decoder(num_layers=1).state_dict())
    layer = {
        f'layers.0.{name}.{kind}'
        for name in (
            'attn.sampling_offsets', 'attn.attention_weights', 'attn.value_proj',
            'attn.output_proj', 'norm1', 'ffn.linear1', 'ffn.linear2', 'norm2',
        )
        for kind in ('weight', 'bias')
    }  # fmt: skip
    projections = {
        f'input_proj.{i}.{name}'
        for i in range(3)
        for name in ('conv.weight', 'conv.bias', 'norm.weight', 'norm.bias')
    }
    pyramid = {
        f'{name}.0.{kind}'
        for name in ('lateral', 'output')
        for kind in ('conv.weight', 'norm.weight', 'norm.bias')
    }
    rest = {'level_embed', 'mask_proj.weight', 'mask_proj.bias'}
    assert names == layer | projections | pyramid | rest


def test_initial_law():
    decoder = MSDeformAttnPixelDecoder((48, 48, 48, 48), PixelDecoderConfig(num_layers=1))
    for projection in decoder.input_proj:
        assert_uniform(projection.conv.weight, math.sqrt(6 / (48 + 256)))
        assert not projection.conv.bias.any()
    assert_uniform(decoder.lateral[0].conv.weight, math.sqrt(3 / 48))
    assert_uniform(decoder.output[0].conv.weight, math.sqrt(3 / (9 * 256)))
    assert_uniform(decoder.mask_proj.weight, math.sqrt(3 / 256))
    assert not decoder.mask_proj.bias.any()


def test_fewer_maps_than_levels_are_refused():
    with pytest.raises(ValueError, match=r'attends to 3 levels, in_channels names only 2 maps'):
        MSDeformAttnPixelDecoder((8, 8))


def test_a_wrong_number_of_maps_is_refused():
    with pytest.raises(ValueError, match=r'built for 4 feature maps \(in_channels .*\), got 3'):
        make_decoder()(make_maps(8, 8)[1:])


def test_checkpointing_changes_no_bit_and_keeps_less():
    maps = make_maps(24, 32)
    plain, frugal = (make_decoder(num_layers=3, checkpointing=on) for on in (False, True))
    frugal.load_state_dict(plain.state_dict())
    (grads, saved), (frugal_grads, frugal_saved) = (
        gradients_and_saved_bytes(
            lambda decoder=decoder: decoder(maps).memory[-1].square().sum(),
            list(decoder.layers.parameters()),
        )
        for decoder in (plain, frugal)
    )
    assert all(map(torch.equal, grads, frugal_grads))
    assert frugal_saved < 0.5 * saved
