"""Swin Transformers of mmseg and mmdet with faster forwards, against the stock ones."""

import copy

import pytest
import torch
from torch import nn

from mmseg_m2f.cpu import onednn, speed_up, swin

pytestmark = pytest.mark.skipif(
    onednn.failure() is not None, reason='this PyTorch has no oneDNN as it is used here'
)
# float32 results of the order of 1 to 10, a few sums of up to 128 products after one another.
CLOSE = {'atol': 2e-5, 'rtol': 1e-5}


@pytest.fixture(params=['mmseg', 'mmdet'])
def library(request):
    return pytest.importorskip(f'{request.param}.models.backbones.swin')


def block_of(library, **settings):
    """A block whose weights all show in the outputs."""
    return redrawn(library.SwinBlock(32, 4, 64, **{'window_size': 5, **settings}))


def redrawn(module):
    torch.manual_seed(0)
    for name, value in module.named_parameters():
        nn.init.normal_(value, std=0.5 if 'bias' in name else 0.1)
        if 'norm' in name and name.endswith('weight'):
            value.data += 1
    module.eval()
    return module


def tokens_of(size, batch=1):
    return torch.randn(batch, size[0] * size[1], 32)


@pytest.fixture
def fast_calls(monkeypatch):
    """Notes whether the faster attention and feed-forward part ran."""
    calls = set()

    def noting(name, function):
        return lambda *args, **options: calls.add(name) or function(*args, **options)

    for name in ('linear', 'linear_gelu'):
        monkeypatch.setattr(swin.onednn, name, noting(name, getattr(onednn, name)))
    return calls


@pytest.mark.parametrize('shift', [False, True])
@pytest.mark.parametrize('size', [(10, 15), (11, 13), (5, 5), (3, 4), (1, 7)], ids=str)
@torch.no_grad()
def test_a_block_gives_what_it_gave(library, size, shift, fast_calls):
    block = block_of(library, shift=shift)
    fast, x = speed_up(copy.deepcopy(block)), tokens_of(size, batch=2)
    before = x.clone()
    torch.testing.assert_close(fast(x, size), block(x, size), **CLOSE)
    assert fast_calls == {'linear', 'linear_gelu'}
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    'settings',
    [{'qkv_bias': False}, {'qk_scale': 0.3}, {'window_size': 4}, {'window_size': 1}],
    ids=str,
)
@torch.no_grad()
def test_settings_of_the_attention(library, settings, fast_calls):
    block = block_of(library, shift=True, **settings)
    fast, x = speed_up(copy.deepcopy(block)), tokens_of((9, 10))
    torch.testing.assert_close(fast(x, (9, 10)), block(x, (9, 10)), **CLOSE)
    assert fast_calls == {'linear', 'linear_gelu'}


@torch.no_grad()
def test_a_whole_backbone_gives_what_it_gave(library, fast_calls):
    network = library.SwinTransformer(
        embed_dims=32,
        depths=(2, 2),
        num_heads=(2, 4),
        strides=(4, 2),
        out_indices=(0, 1),
        drop_path_rate=0.2,
    )
    network, image = redrawn(network), torch.randn(2, 3, 150, 147)
    fast = speed_up(copy.deepcopy(network))
    for found, expected in zip(fast(image), network(image), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert fast_calls == {'linear', 'linear_gelu'}


def test_with_gradient_the_class_computes(library, fast_calls):
    block = block_of(library, shift=True)
    fast, x = speed_up(copy.deepcopy(block)), tokens_of((9, 8))
    for one in (block, fast):
        one(x, (9, 8)).square().sum().backward()
    for found, expected in zip(fast.parameters(), block.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)
    assert not fast_calls


@torch.no_grad()
def test_in_training_mode_the_class_computes(library, fast_calls):
    block = block_of(library, shift=True, drop_rate=0.3, drop_path_rate=0.5).train()
    fast, x = speed_up(copy.deepcopy(block)), tokens_of((9, 8), batch=4)
    torch.manual_seed(1)
    expected = block(x, (9, 8))
    torch.manual_seed(1)
    assert torch.equal(fast(x, (9, 8)), expected)
    assert not fast_calls


def _hooks(block):
    for part in (block.attn.w_msa.proj, block.ffn):
        part.register_forward_hook(lambda *_: None)


def _double(block):
    block.double()


def _another_layer(block):
    block.attn.w_msa.qkv = nn.Sequential(block.attn.w_msa.qkv)
    block.ffn.layers[1] = nn.Sequential(block.ffn.layers[1])


def _another_gelu(block):
    block.ffn.layers[0][1].approximate = 'tanh'
    block.attn.w_msa.softmax = nn.Softmin(dim=-1)


def _one_dropout_trains(block):
    block.attn.w_msa.attn_drop.train()
    block.ffn.layers[2].train()


@pytest.mark.parametrize(
    'change', [_hooks, _double, _another_layer, _another_gelu, _one_dropout_trains]
)
@torch.no_grad()
def test_a_changed_block_computes_as_its_class(library, change, fast_calls):
    block = block_of(library)
    fast = speed_up(copy.deepcopy(block))
    for one in (block, fast):
        change(one)
    x = tokens_of((9, 8)).to(block.norm1.weight.dtype)
    assert torch.equal(fast(x, (9, 8)), block(x, (9, 8)))
    assert not fast_calls


@torch.no_grad()
def test_hooks_and_errors_are_those_of_the_class(library):
    fast, called = speed_up(block_of(library)), []
    for part in (fast.attn, fast.attn.w_msa, fast.norm2, fast.ffn, fast.ffn.layers[1]):
        part.register_forward_hook(lambda *_: called.append(1))
    fast(tokens_of((9, 8)), (9, 8))
    assert len(called) == 5
    with pytest.raises(AssertionError, match='wrong size'):
        fast(tokens_of((9, 8)), (9, 9))
