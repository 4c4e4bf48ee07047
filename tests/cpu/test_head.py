"""The parts of our head with faster forwards, against the same parts with their own."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmseg_m2f.core.deform_attn import MSDeformAttn, pixel_centers
from mmseg_m2f.core.layers import ConvNorm, FeedForward
from mmseg_m2f.cpu import onednn, speed_up
from tests.cpu.conftest import double, hook_every_layer

pytestmark = pytest.mark.skipif(
    onednn.failure() is not None, reason='this PyTorch has no oneDNN as it is used here'
)
SHAPES = [(3, 4), (6, 8)]
PARTS = {
    'feed-forward': lambda: FeedForward(32, 64),
    'deformable attention': lambda: MSDeformAttn(32, 4, 2, 2),
    'convolution': lambda: ConvNorm(32, 64, 3, norm_groups=8, activate=True),
    'projection': lambda: ConvNorm(32, 64, norm_groups=8, bias=True),
}


@pytest.fixture(params=PARTS)
def part(request):
    return PARTS[request.param]()


def arguments(part):
    """Return the arguments of a call; the first is the differentiable input."""
    if isinstance(part, ConvNorm):
        return [torch.randn(2, 32, 9, 7, requires_grad=True)]
    tokens = torch.randn(2, 60, 32, requires_grad=True)
    centers = pixel_centers(SHAPES, device=tokens.device, dtype=tokens.dtype)
    is_attention = isinstance(part, MSDeformAttn)
    return [tokens, tokens.detach() + 1, centers, SHAPES] if is_attention else [tokens]


def test_results_and_gradients_are_those_of_the_class(part, fast_calls):
    fast, args, found = speed_up(copy.deepcopy(part)), arguments(part), []
    for one in (part, fast):
        y = one(*args)
        grad = torch.linspace(-1, 2, y.numel()).view(y.shape)
        found.append([y.detach(), *torch.autograd.grad(y, [args[0], *one.parameters()], grad)])
    assert fast_calls
    for expected, got in zip(*found, strict=True):
        # float32 sums of up to 288 products, one after another.
        allowed = 16 * torch.finfo(torch.float32).eps * 288**0.5 * (1 + expected.abs().max())
        assert (got - expected).abs().max() < allowed


def another_layer(part):
    name, child = next(iter(part.named_children()))
    setattr(part, name, nn.Sequential(child))


def another_forward_inside(part):
    child = next(iter(part.children()))
    child.forward = child.forward


@pytest.mark.parametrize(
    'change', [double, hook_every_layer, another_layer, another_forward_inside]
)
def test_a_changed_part_computes_as_its_class(part, change, check_that_the_class_computes):
    check_that_the_class_computes(part, arguments(part), change)


def test_under_an_autocast_the_class_computes(part, check_that_the_class_computes):
    check_that_the_class_computes(part, arguments(part), autocast=True)


def test_the_back_end_that_was_chosen_is_asked(fast_calls):
    part = speed_up(PARTS['deformable attention']())
    part.backend = 'abacus'
    with pytest.raises(ValueError, match='abacus'):
        part(*arguments(part))
    assert fast_calls


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
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@torch.no_grad()
def test_both_decoders_give_what_they_gave(tiny_model, fast_calls):
    maps = tiny_model.maps(1, 32, 48)
    features = tiny_model.pixel_decoder(maps)
    prediction = tiny_model.decoder.predict(features)
    speed_up(tiny_model)
    found = tiny_model.pixel_decoder(maps)
    pairs = zip((found[0], *found[1]), (features[0], *features[1]), strict=True)
    pairs = [*pairs, *zip(tiny_model.decoder.predict(features), prediction, strict=True)]
    assert fast_calls
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * (1 + float(other.abs().max())))
