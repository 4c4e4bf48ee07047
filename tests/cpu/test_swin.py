"""Swin blocks with another ``forward`` against the same blocks with that of their class."""

import copy
import io

import pytest
import torch
from torch import nn

from mmseg_m2f.cpu import swin

LIBRARIES = ('mmseg', 'mmdet')
# Of float32 outputs of the order of 1: what summing in another order moves.
CLOSE = {'atol': 2e-5, 'rtol': 1e-5}


@pytest.fixture(params=LIBRARIES)
def library(request):
    return pytest.importorskip(f'{request.param}.models.backbones.swin')


@pytest.fixture(autouse=True)
def few_together(monkeypatch):
    """Small maps in several groups, too."""
    monkeypatch.setattr(swin, 'TOGETHER', 60)
    swin._plan.cache_clear()
    yield
    swin._plan.cache_clear()


def redrawn(module):
    """With weights that all show in the outputs."""
    torch.manual_seed(0)
    for name, value in module.named_parameters():
        nn.init.normal_(value, std=0.5 if 'bias' in name else 0.1)
        if 'norm' in name and name.endswith('weight'):
            value.data += 1
    module.eval()
    return module


def block_of(library, **settings):
    return redrawn(library.SwinBlock(32, 4, 64, **{'window_size': 5, **settings}))


def patched(module):
    """A copy, each part of which that is known has the other ``forward``."""
    module = copy.deepcopy(module)
    parts = [(part, swin.forward_of(part)) for part in module.modules()]
    parts = [(part, forward) for part, forward in parts if forward is not None]
    assert parts
    for part, forward in parts:
        part.forward = forward
    return module


def tokens_of(size, batch=1, channels=32):
    return torch.randn(batch, size[0] * size[1], channels)


@pytest.fixture
def shortcuts(monkeypatch):
    """How often a block was computed in the other way."""
    calls = []
    attend = swin._Block._attend

    def noting(*args):
        calls.append(args)
        return attend(*args)

    monkeypatch.setattr(swin._Block, '_attend', noting)
    return calls


@pytest.mark.parametrize('shift', [False, True])
@pytest.mark.parametrize(
    'size', [(10, 15), (11, 13), (5, 5), (3, 4), (6, 14), (1, 7), (12, 12)], ids=str
)
@torch.no_grad()
def test_a_block_gives_what_it_gave(library, size, shift, shortcuts):
    block = block_of(library, shift=shift)
    x = tokens_of(size, batch=2)
    before = x.clone()
    found = patched(block)(x, size)
    assert shortcuts
    torch.testing.assert_close(found, block(x, size), **CLOSE)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    'settings',
    [{'qkv_bias': False}, {'qk_scale': 0.3}, {'window_size': 4}, {'window_size': 1}],
    ids=str,
)
@torch.no_grad()
def test_settings_of_the_attention(library, settings, shortcuts):
    block = block_of(library, shift=True, **settings)
    x = tokens_of((9, 10))
    torch.testing.assert_close(patched(block)(x, (9, 10)), block(x, (9, 10)), **CLOSE)
    assert shortcuts


@pytest.mark.parametrize('size', [(8, 6), (7, 9), (1, 4)], ids=str)
@torch.no_grad()
def test_merging_gives_what_it_gave(library, size, monkeypatch):
    merging = redrawn(library.PatchMerging(6, 12))
    x = tokens_of(size, batch=2, channels=6)
    expected, expected_size = merging(x, size)
    monkeypatch.setattr(nn.Unfold, 'forward', None)
    found, found_size = patched(merging)(x, size)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found_size == expected_size


@pytest.mark.parametrize(
    'settings',
    [{'kernel_size': 3}, {'stride': 1}, {'padding': 1}, {'dilation': 2}, {'norm_cfg': None}],
    ids=str,
)
@torch.no_grad()
def test_another_merging_is_left_to_its_class(library, settings):
    merging = redrawn(library.PatchMerging(6, 12, **settings))
    x = tokens_of((8, 6), channels=6)
    assert torch.equal(patched(merging)(x, (8, 6))[0], merging(x, (8, 6))[0])


def test_merging_with_gradient_and_with_hooks_is_left_to_its_class(library):
    merging = redrawn(library.PatchMerging(6, 12))
    fast, x, called = patched(merging), tokens_of((8, 6), channels=6), []
    assert torch.equal(fast(x, (8, 6))[0], merging(x, (8, 6))[0])
    fast.norm.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        assert torch.equal(fast(x, (8, 6))[0], merging(x, (8, 6))[0])
    assert called == [1]


def small_backbone(library, **settings):
    settings = {'drop_path_rate': 0.2, **settings}
    network = library.SwinTransformer(
        embed_dims=32,
        depths=(2, 2),
        num_heads=(2, 4),
        strides=(4, 2),
        out_indices=(0, 1),
        **settings,
    )
    return redrawn(network)


@torch.no_grad()
def test_a_whole_backbone_gives_what_it_gave(library, shortcuts):
    network = small_backbone(library)
    image = torch.randn(2, 3, 150, 147)
    for found, expected in zip(patched(network)(image), network(image), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert shortcuts


@torch.inference_mode()
def test_plans_that_inference_mode_made_serve_afterwards(library):
    block = block_of(library, shift=True)
    fast = patched(block)
    fast(tokens_of((9, 8)), (9, 8))
    with torch.inference_mode(mode=False), torch.no_grad():
        x = tokens_of((9, 8))
        torch.testing.assert_close(fast(x, (9, 8)), block(x, (9, 8)), **CLOSE)


@torch.no_grad()
def test_new_weights_count_from_the_next_call(library, shortcuts):
    block = block_of(library, shift=True)
    fast, x = patched(block), tokens_of((9, 8))
    fast(x, (9, 8))
    for value in block.parameters():
        value.add_(0.05 * torch.randn_like(value))
    fast.load_state_dict(block.state_dict())
    torch.testing.assert_close(fast(x, (9, 8)), block(x, (9, 8)), **CLOSE)
    fast.double()
    expected = block.double()(x.double(), (9, 8))
    assert torch.equal(fast(x.double(), (9, 8)), expected)
    assert fast.state_dict().keys() == block.state_dict().keys()


def test_with_gradient_the_class_computes(library, shortcuts):
    block = block_of(library, shift=True)
    fast, x = patched(block), tokens_of((9, 8))
    block(x, (9, 8)).square().sum().backward()
    fast(x, (9, 8)).square().sum().backward()
    for found, expected in zip(fast.parameters(), block.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)
    assert not shortcuts


@torch.no_grad()
def test_in_training_mode_the_class_computes(library, shortcuts):
    block = block_of(library, shift=True, drop_rate=0.3, drop_path_rate=0.5).train()
    fast, x = patched(block), tokens_of((9, 8), batch=4)
    torch.manual_seed(1)
    expected = block(x, (9, 8))
    torch.manual_seed(1)
    assert torch.equal(fast(x, (9, 8)), expected)
    assert not shortcuts


def _hook(block):
    block.attn.w_msa.proj.register_forward_hook(lambda *_: None)


def _double(block):
    block.double()


def _another_layer(block):
    block.attn.w_msa.qkv = nn.Sequential(block.attn.w_msa.qkv)


def _one_layer_more(block):
    block.attn.adapter = nn.Linear(3, 3)


def _another_forward(block):
    block.norm2.forward = nn.Identity().forward


def _another_gelu(block):
    block.ffn.layers[0][1].approximate = 'tanh'


def _one_dropout_trains(block):
    block.attn.drop.train()


@pytest.mark.parametrize(
    'change',
    [
        _hook,
        _double,
        _another_layer,
        _one_layer_more,
        _another_forward,
        _another_gelu,
        _one_dropout_trains,
    ],
)
@torch.no_grad()
def test_a_changed_block_is_left_to_its_class(library, change, shortcuts):
    block = block_of(library)
    fast = patched(block)
    change(block)
    change(fast)
    x = tokens_of((9, 8)).to(block.norm1.weight.dtype)
    assert torch.equal(fast(x, (9, 8)), block(x, (9, 8)))
    assert not shortcuts


@torch.no_grad()
def test_under_autocast_the_class_computes(library, shortcuts):
    block = block_of(library)
    fast, x = patched(block), tokens_of((9, 8))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(fast(x, (9, 8)), block(x, (9, 8)))
    assert not shortcuts


@torch.no_grad()
def test_hooks_inside_are_called(library):
    fast, called = patched(block_of(library)), []
    handle = fast.attn.w_msa.register_forward_hook(lambda *_: called.append(1))
    fast(tokens_of((9, 8)), (9, 8))
    assert called == [1]
    handle.remove()


@torch.no_grad()
def test_a_wrong_size_is_reported_by_the_class(library):
    fast = patched(block_of(library))
    with pytest.raises(AssertionError, match='wrong size'):
        fast(tokens_of((9, 8)), (9, 9))


@torch.no_grad()
def test_copies_compute_with_their_own_weights(library, shortcuts):
    block, x = block_of(library, shift=True), tokens_of((9, 8))
    fast = patched(block)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for other in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        shortcuts.clear()
        assert torch.equal(other(x, (9, 8)), fast(x, (9, 8)))
        fast_calls = len(shortcuts)
        other.norm2.weight.add_(1)
        changed = copy.deepcopy(block)
        changed.norm2.weight.add_(1)
        torch.testing.assert_close(other(x, (9, 8)), changed(x, (9, 8)), **CLOSE)
        assert len(shortcuts) > fast_calls > 0
    torch.testing.assert_close(fast(x, (9, 8)), block(x, (9, 8)), **CLOSE)


def test_unknown_modules_get_nothing(library):
    class Own(library.SwinBlock):
        pass

    assert swin.forward_of(Own(32, 4, 64)) is None
    assert swin.forward_of(nn.Linear(3, 3)) is None
    taken = patched(block_of(library))
    assert swin.forward_of(taken) is None


def test_a_wrapper_that_exchanges_the_class_is_left_alone(library):
    """As sharding and parametrisations do."""
    block = library.SwinBlock(32, 4, 64, window_size=3)
    forward = swin.forward_of(block)
    x = torch.randn(1, 12, 32)
    block.eval()
    with torch.no_grad():
        expected = block(x, (3, 4))
    block.__class__ = type('Sharded', (type(block),), {'__module__': __name__})
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            torch.testing.assert_close(forward(x, (3, 4)), expected, rtol=1e-5, atol=2e-5)
