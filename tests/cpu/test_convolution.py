"""Convolutions with what follows them, and Winograd's algorithm, against float64."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmseg_m2f.cpu import onednn, winograd
from mmseg_m2f.cpu.convolution import channels_last, convolve, is_plain

needs_onednn = pytest.mark.skipif(
    onednn.failure() is not None, reason='this PyTorch has no oneDNN as it is used here'
)
needs_winograd = pytest.mark.skipif(
    winograd.LIBRARY.why_not() is not None, reason=str(winograd.LIBRARY.why_not())
)
EPSILON = torch.finfo(torch.float32).eps
# Winograd's transforms multiply errors; the bound is of the largest value. Seen: 5e-6 to 2e-5.
WINOGRAD = 3e-5

# Channels in and out, kernel, stride, padding, dilation; height and width of the map.
FORMS = {
    'pointwise': ((8, 24, 1), 5, 7),
    'pointwise, strides': ((8, 24, 1, (2, 3)), 5, 7),
    'padded pointwise': ((4, 4, 1, 1, 1), 3, 3),
    'one pixel': ((16, 8, 3, 1, 1), 1, 1),
    'stride 2': ((16, 8, 3, 2, 1), 9, 8),
    'dilation': ((8, 8, 3, 1, 2, 2), 9, 9),
    'stem': ((3, 8, 7, 2, 3), 20, 22),
    'oblong': ((4, 4, (1, 3), 1, (0, 1)), 6, 5),
    # Large enough for Winograd's algorithm.
    'winograd': ((64, 96, 3, 1, 1), 50, 51),
    'winograd, few pixels': ((512, 512, 3, 1, 1), 5, 6),
}


def parts(form, dtype=torch.float32):
    """The module and leaves ``x``, weight, bias, residual."""
    settings, height, width = FORMS[form]
    convolution = nn.Conv2d(*settings)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(2, convolution.in_channels, height, width)
    weight = normal(*convolution.weight.shape) / convolution.weight[0].numel() ** 0.5
    like = public(convolution, x, weight, None)
    leaves = [x, weight, normal(convolution.out_channels), normal(*like.shape)]
    return convolution, [leaf.to(dtype).requires_grad_() for leaf in leaves]


def public(convolution, x, weight, bias, *, relu=False, residual=None):
    window = (convolution.stride, convolution.padding, convolution.dilation)
    y = F.conv2d(x, weight, bias, *window)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def run(function, form, dtype, *, bias, residual, relu):
    """The result, and the gradients of its product with fixed numbers."""
    convolution, (x, weight, shift, other) = parts(form, dtype)
    leaves = [x, weight, *[shift] * bias, *[other] * residual]
    shift, other = shift if bias else None, other if residual else None
    y = function(convolution, x, weight, shift, relu=relu, residual=other)
    grad = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]


@needs_onednn
@pytest.mark.parametrize('form', FORMS)
def test_results_and_gradients_are_those_of_float64(form):
    for bias, residual, relu in itertools.product([True, False], repeat=3):
        options = {'bias': bias, 'residual': residual, 'relu': relu}
        found = run(convolve, form, torch.float32, **options)
        exact = run(public, form, torch.float64, **options)
        for value, expected in zip(found, exact, strict=True):
            error = (value.double() - expected).abs()
            # Sums of up to 5,100 products, in float32.
            allowed = max(WINOGRAD, 4 * EPSILON * 5100**0.5) * expected.abs().max()
            if relu:  # where ReLU is at its corner, rounding decides about a gradient
                assert (error > allowed).double().mean() < 1e-3
            else:
                assert error.max() < allowed


@needs_onednn
@pytest.mark.parametrize('form', ['pointwise, strides', 'winograd', 'stride 2'])
def test_second_derivatives_are_those_of_float64(form):
    found = []
    for function, dtype in ((convolve, torch.float32), (public, torch.float64)):
        convolution, (x, weight, bias, residual) = parts(form, dtype)
        leaves = [x, weight, bias, residual]
        y = function(convolution, x, weight, bias, relu=True, residual=residual)
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for got, expected in zip(*found, strict=True):
        # A ReLU whose input rounds to the other side of 0 moves a gradient a little.
        assert (got.double() - expected).norm() < 1e-3 * expected.norm()


@needs_onednn
@pytest.mark.parametrize('form', ['pointwise', 'stride 2'])
def test_only_inputs_weight_and_result_are_kept_for_the_backward_pass(form):
    convolution, (x, weight, bias, residual) = parts(form)
    x = channels_last(x).detach()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = convolve(convolution, x, weight, bias, relu=True, residual=residual)
    known = {value.untyped_storage().data_ptr() for value in (x, weight, y)}
    assert {value.untyped_storage().data_ptr() for value in kept} <= known


def test_only_plain_convolutions_are_taken():
    assert is_plain(nn.Conv2d(4, 8, 3, stride=2, padding=1))
    assert not is_plain(nn.Conv2d(4, 8, 3, groups=2))
    assert not is_plain(nn.Conv2d(4, 8, 3, padding='same'))
    assert not is_plain(nn.Conv2d(4, 8, 3, padding=1, padding_mode='reflect'))
    assert not is_plain(type('Own', (nn.Conv2d,), {})(4, 8, 3))


@needs_winograd
def test_winograd_is_for_large_maps_stride_1_and_whole_registers():
    large, small = torch.zeros(1, 64, 64, 64), torch.zeros(1, 64, 8, 8)
    assert winograd.suits(nn.Conv2d(64, 64, 3, padding=1), large)
    assert not winograd.suits(nn.Conv2d(64, 64, 3, padding=1), small)
    others = [{'stride': 2}, {'padding': 0}, {'dilation': 2}]
    for other in (*others, {'in_channels': 65}, {'out_channels': 65}):
        settings = {'in_channels': 64, 'out_channels': 64, 'kernel_size': 3, 'padding': 1}
        convolution = nn.Conv2d(**(settings | other))
        x = torch.zeros(1, convolution.in_channels, 64, 64)
        assert not winograd.suits(convolution, x)


def check_winograd(batch, channels, out_channels, size):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, weight = normal(batch, channels, *size), normal(out_channels, channels, 3, 3)
    # Weights in another order, and a bias whose numbers do not lie side by side.
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias, grad = normal(2 * out_channels)[::2], normal(batch, out_channels, *size)
    found = []
    for function, dtype in (
        (winograd.convolve_3x3, torch.float32),
        (lambda *args: F.conv2d(*args, padding=1), torch.float64),
    ):
        leaves = [value.to(dtype).requires_grad_() for value in (channels_last(x), weight, bias)]
        y = function(*leaves)
        found.append([y, *torch.autograd.grad(y, leaves, grad.to(dtype))])
    for got, expected in zip(*found, strict=True):
        assert (got.double() - expected).abs().max() < WINOGRAD * expected.abs().max()


# Tiles that are cut, several maps, channels that do not fill a panel, more tiles than a batch.
SIZES = [(1, 1), (2, 5), (4, 4), (5, 4), (7, 9), (13, 37)]


def check_winograd_at_every_border():
    for size in SIZES:
        check_winograd(3, 32, 48, size)
    check_winograd(2, 128, 128, (100, 98))


@needs_winograd
@pytest.mark.parametrize('default', [torch.float32, torch.float64], ids=str)
def test_winograd_at_every_border(default):
    """The default dtype of PyTorch changes nothing."""
    torch.set_default_dtype(default)
    try:
        check_winograd_at_every_border()
    finally:
        torch.set_default_dtype(torch.float32)


@needs_winograd
def test_winograd_with_shorter_registers(shorter_registers):
    shorter_registers(winograd)
    check_winograd_at_every_border()


@needs_winograd
def test_winograd_gives_the_same_bits_on_any_number_of_threads():
    x, weight = torch.randn(2, 64, 30, 33), torch.randn(64, 64, 3, 3)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        leaves = [channels_last(x).requires_grad_(), weight.clone().requires_grad_()]
        y = winograd.convolve_3x3(*leaves, None)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
