"""The parts of our head with faster forwards, against the same parts with their own."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmseg_m2f import core
from mmseg_m2f.core.deform_attn import MSDeformAttn, pixel_centers
from mmseg_m2f.core.layers import ConvNorm, FeedForward
from mmseg_m2f.cpu import head, onednn, speed_up

pytestmark = pytest.mark.skipif(
    onednn.failure() is not None, reason='this PyTorch has no oneDNN as it is used here'
)
SHAPES = [(3, 4), (6, 8)]


def arguments(part):
    """Return the arguments of a call; the first is the differentiable input."""
    torch.manual_seed(1)
    if isinstance(part, ConvNorm):
        return [torch.randn(2, 32, 9, 7, requires_grad=True)]
    tokens = torch.randn(2, 60, 32, requires_grad=True)
    if isinstance(part, FeedForward):
        return [tokens]
    centers = pixel_centers(SHAPES, device=tokens.device, dtype=tokens.dtype)
    return [tokens, tokens.detach() + 1, centers, SHAPES]


PARTS = {
    'feed-forward': lambda: FeedForward(32, 64),
    'deformable attention': lambda: MSDeformAttn(32, 4, 2, 2),
    'convolution': lambda: ConvNorm(32, 64, 3, norm_groups=8, activate=True),
    'projection': lambda: ConvNorm(32, 64, norm_groups=8, bias=True),
}


@pytest.fixture(params=PARTS)
def part(request):
    torch.manual_seed(0)
    return PARTS[request.param]()


@pytest.fixture
def fast_calls(monkeypatch):
    """Counts the products on oneDNN and the faster convolutions."""
    calls = []

    def counting(function):
        return lambda *args, **options: calls.append(1) or function(*args, **options)

    monkeypatch.setattr(head.onednn, 'linear', counting(onednn.linear))
    monkeypatch.setattr(head, 'convolve', counting(head.convolve))
    return calls


def test_results_and_gradients_are_those_of_the_class(part, fast_calls):
    fast = speed_up(copy.deepcopy(part))
    found = []
    for one in (part, fast):
        args = arguments(one)
        y = one(*args)
        leaves = [args[0], *one.parameters()]
        grad = torch.linspace(-1, 2, y.numel()).view(y.shape)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, grad)])
    assert fast_calls
    for expected, got in zip(*found, strict=True):
        # float32 sums of up to 288 products, one after another.
        allowed = 16 * torch.finfo(torch.float32).eps * 288**0.5 * (1 + expected.abs().max())
        assert (got - expected).abs().max() < allowed


def _double(part):
    part.double()


def _hook_inside(part):
    list(part.children())[-1].register_forward_hook(lambda *_: None)


def _another_layer(part):
    name, child = next(iter(part.named_children()))
    setattr(part, name, nn.Sequential(child))


def _another_forward_inside(part):
    child = next(iter(part.children()))
    child.forward = child.forward


@pytest.mark.parametrize('change', [_double, _hook_inside, _another_layer, _another_forward_inside])
def test_a_changed_part_computes_as_its_class(part, change, fast_calls):
    fast = speed_up(copy.deepcopy(part))
    for one in (part, fast):
        change(one)
    dtype = next(part.parameters()).dtype
    args = [x.to(dtype) if isinstance(x, torch.Tensor) else x for x in arguments(part)]
    assert torch.equal(fast(*args), part(*args))
    assert not fast_calls


def test_under_an_autocast_the_class_computes(part, fast_calls):
    fast, args = speed_up(copy.deepcopy(part)), arguments(part)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(fast(*args), part(*args))
    assert not fast_calls


CAPTURED = """
import copy, torch
from mmseg_m2f.core import MSDeformAttnPixelDecoder, PixelDecoderConfig
from mmseg_m2f.cpu import onednn, speed_up
torch.manual_seed(0)
config = PixelDecoderConfig(channels=32, num_layers=1, ffn_dim=64)
plain = MSDeformAttnPixelDecoder([8, 16, 32, 64], config).eval()
fast = speed_up(copy.deepcopy(plain))
maps = [torch.randn(1, 8 << i, 32 >> i, 48 >> i) for i in range(4)]
onednn._Linear.apply = onednn._operator = None
with torch.no_grad():
    expected = plain(maps)
    compiled = torch.compile(fast, backend='eager', fullgraph=True)(maps)
    exported = torch.export.export(fast, (maps,)).module()(maps)
for got in (compiled, exported):
    assert torch.equal(got[0], expected[0])
"""


def test_compilers_and_exporters_see_the_operators_of_pytorch():
    """It runs in another process: ``torch.compile`` cannot take the tests' shape checker."""
    command = [sys.executable, '-c', CAPTURED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_both_decoders_give_what_they_gave():
    torch.manual_seed(0)
    pixel_config = core.PixelDecoderConfig(channels=32, num_layers=1, ffn_dim=64)
    config = core.DecoderConfig(num_classes=5, num_queries=7, channels=32, num_layers=3, ffn_dim=64)
    network = nn.ModuleList(
        [
            core.MSDeformAttnPixelDecoder([8, 16, 32, 64], pixel_config),
            core.MaskedAttentionDecoder(config),
        ]
    )
    maps = [torch.randn(1, 8 << i, 32 >> i, 48 >> i) for i in range(4)]
    with torch.no_grad():
        expected = network[0](maps)
        before = network[1].predict(expected)
        speed_up(network)
        got = network[0](maps)
        after = network[1].predict(expected)
    pairs = zip((got[0], *got[1], *after), (expected[0], *expected[1], *before), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * (1 + float(other.abs().max())))
