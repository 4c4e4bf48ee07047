"""Swin Transformers of mmseg and mmdet with faster forwards, against the stock ones."""

import copy

import pytest
import torch
from torch import nn

from mmseg_m2f.cpu import onednn, speed_up
from tests.cpu.conftest import double, hook_every_layer

pytestmark = pytest.mark.skipif(
    onednn.failure() is not None, reason='this PyTorch has no oneDNN as it is used here'
)
# float32 results of the order of 1 to 10, a few sums of up to 128 products after one another.
CLOSE = {'atol': 2e-5, 'rtol': 1e-5}
BOTH = {'linear', 'linear_gelu'}


@pytest.fixture(params=['mmseg', 'mmdet'])
def library(request):
    return pytest.importorskip(f'{request.param}.models.backbones.swin')


def redrawn(module):
    """Draw weights that all show in the outputs."""
    for name, value in module.named_parameters():
        nn.init.normal_(value, std=0.5 if 'bias' in name else 0.1)
        if 'norm' in name and name.endswith('weight'):
            value.data += 1
    module.eval()
    return module


def block_of(library, **settings):
    return redrawn(library.SwinBlock(32, 4, 64, **{'window_size': 5, **settings}))


def tokens_of(size, batch=2):
    return torch.randn(batch, size[0] * size[1], 32), size


@pytest.mark.parametrize(
    ('size', 'settings'),
    [
        *[
            (size, {'shift': shift})
            for size in [(10, 15), (11, 13), (5, 5), (3, 4), (1, 7)]
            for shift in (False, True)
        ],
        ((9, 10), {'shift': True, 'qkv_bias': False}),
        ((9, 10), {'shift': True, 'qk_scale': 0.3}),
        ((9, 10), {'shift': True, 'window_size': 4}),
        ((9, 10), {'shift': True, 'window_size': 1}),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_block_gives_what_it_gave(library, size, settings, fast_calls):
    block, (x, size) = block_of(library, **settings), tokens_of(size)
    before, expected = x.clone(), block(x, size)
    torch.testing.assert_close(speed_up(block)(x, size), expected, **CLOSE)
    assert set(fast_calls) == BOTH
    assert torch.equal(x, before)


@torch.no_grad()
def test_a_whole_backbone_gives_what_it_gave(library, fast_calls):
    sizes = {'embed_dims': 32, 'depths': (2, 2), 'num_heads': (2, 4), 'strides': (4, 2)}
    network = library.SwinTransformer(**sizes, out_indices=(0, 1), drop_path_rate=0.2)
    network, image = redrawn(network), torch.randn(2, 3, 150, 147)
    expected = network(image)
    for found, one in zip(speed_up(network)(image), expected, strict=True):
        torch.testing.assert_close(found, one, **CLOSE)
    assert set(fast_calls) == BOTH


def test_with_gradient_the_class_computes(library, fast_calls):
    block, inputs = block_of(library, shift=True), tokens_of((9, 8))
    fast = speed_up(copy.deepcopy(block))
    for one in (block, fast):
        one(*inputs).square().sum().backward()
    for found, expected in zip(fast.parameters(), block.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)
    assert not fast_calls


def training_mode(block):
    block.train()


def another_layer(block):
    block.attn.w_msa.qkv = nn.Sequential(block.attn.w_msa.qkv)
    block.ffn.layers[1] = nn.Sequential(block.ffn.layers[1])


def another_gelu(block):
    block.ffn.layers[0][1].approximate = 'tanh'
    block.attn.w_msa.softmax = nn.Softmin(dim=-1)


def one_dropout_trains(block):
    block.attn.w_msa.attn_drop.train()
    block.ffn.layers[2].train()


@pytest.mark.parametrize(
    'change',
    [hook_every_layer, double, training_mode, another_layer, another_gelu, one_dropout_trains],
)
def test_a_changed_block_computes_as_its_class(library, change, check_that_the_class_computes):
    block = block_of(library, shift=True, drop_rate=0.3, drop_path_rate=0.5)
    check_that_the_class_computes(block, tokens_of((9, 8)), change)


@torch.no_grad()
def test_hooks_and_errors_are_those_of_the_class(library):
    fast, called = speed_up(block_of(library)), []
    for part in (fast.attn, fast.attn.w_msa, fast.norm2, fast.ffn, fast.ffn.layers[1]):
        part.register_forward_hook(lambda *_: called.append(1))
    x, size = tokens_of((9, 8))
    fast(x, size)
    assert len(called) == 5
    with pytest.raises(AssertionError, match='wrong size'):
        fast(x, (9, 9))
