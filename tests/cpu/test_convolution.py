"""Convolutions with what follows them, against PyTorch's own in float64 and by its gradients."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_m2f.cpu.convolution import BACKENDS, Window, convolve, winograd
from mmseg_m2f.cpu.convolution.reference import convolve_reference

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='this PyTorch has no oneDNN'
)
needs_winograd = pytest.mark.skipif(
    winograd.LIBRARY.why_not() is not None, reason=str(winograd.LIBRARY.why_not())
)

# kernel, window, channels in and out, height, width; the last ones are large enough for Winograd.
FORMS = {
    'pointwise': (1, Window(), 8, 24, 5, 7),
    'pointwise, stride 2, odd size': (1, Window(2), 8, 24, 5, 7),
    'one pixel': (3, Window(1, 1), 16, 8, 1, 1),
    'stride 2': (3, Window(2, 1), 16, 8, 9, 8),
    'dilation': (3, Window(1, 2, 2), 8, 8, 9, 9),
    'stem': (7, Window(2, 3), 3, 8, 20, 22),
    'padding of a 1 x 1 kernel': (1, Window(1, 1), 4, 4, 3, 3),
    'no padding': (3, Window(), 4, 4, 6, 5),
    'winograd': (3, Window(1, 1), 64, 96, 50, 51),
    'winograd, few pixels': (3, Window(1, 1), 512, 512, 5, 6),
}


class Operators(TorchDispatchMode):
    """Notes the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def parts(form: str, *, dtype=torch.float32, **chosen: bool):
    """Leaves of the graph, None where they are not chosen, and the window."""
    kernel, window, channels, out_channels, height, width = FORMS[form]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(2, channels, height, width)
    weight = normal(out_channels, channels, kernel, kernel) / (channels * kernel**2) ** 0.5
    size = convolve_reference(x, weight, None, window, None, None, False).shape
    bias, scale, residual = normal(out_channels), normal(out_channels), normal(*size)
    grad = normal(*size)
    leaves = {'x': x, 'weight': weight, 'bias': bias, 'scale': scale, 'residual': residual}
    for name, value in leaves.items():
        kept = chosen.get(name, True)
        leaves[name] = value.to(dtype).requires_grad_(name != 'scale') if kept else None
    return leaves, window, grad.to(dtype)


def run(function, leaves, window, relu, grad):
    """Result and gradients."""
    order = ('x', 'weight', 'bias')
    args = [leaves[name] for name in order]
    y = function(*args, window, leaves['scale'], leaves['residual'], relu)
    wanted = [leaves[n] for n in (*order, 'residual') if leaves[n] is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad)]


def convolved(x, weight, bias, window, scale, residual, relu):
    return convolve(x, weight, bias, window, scale=scale, residual=residual, relu=relu)


@needs_onednn
@pytest.mark.parametrize('form', FORMS)
def test_results_and_gradients_are_those_of_float64(form):
    for bias, scale, residual, relu in itertools.product([True, False], repeat=4):
        chosen = {'bias': bias, 'scale': scale, 'residual': residual}
        leaves, window, grad = parts(form, **chosen)
        exact_leaves, _, exact_grad = parts(form, dtype=torch.float64, **chosen)
        with Operators() as operators:
            found = run(convolved, leaves, window, relu, grad)
        exact = run(convolve_reference, exact_leaves, window, relu, exact_grad)
        for value, expected in zip(found, exact, strict=True):
            error = (value.double() - expected).abs()
            # Where ReLU is at its corner, rounding decides about a gradient.
            if relu:
                assert (error > 1e-4 * expected.abs().max()).double().mean() < 1e-3
            else:
                assert error.max() < 5e-5 * expected.abs().max()
        ours = {name for name in operators.names if name.startswith('mmseg_m2f::')}
        if winograd.LIBRARY.why_not() is None:
            assert len(ours) == (3 if 'winograd' in form else 0)


@needs_winograd
@pytest.mark.parametrize('size', [(1, 1), (2, 5), (4, 4), (5, 4), (7, 9), (13, 37)])
def test_winograd_at_every_border(size):
    """Tiles that are cut, more maps than one, channels that do not fill a panel."""
    check_winograd(size)


@needs_winograd
def test_winograd_with_shorter_registers(shorter_registers):
    shorter_registers(winograd)
    for size in ((1, 1), (5, 4), (13, 37)):
        check_winograd(size)


def check_winograd(size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 32, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(48, 32, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(48, generator=generator, dtype=torch.float64)
    grad = torch.randn(3, 48, *size, generator=generator, dtype=torch.float64)
    y = torch.conv2d(x, weight, bias, 1, 1).relu()
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    single = [value.float() for value in (x, weight, grad)]
    found = [
        winograd.convolve_3x3(*single[:2], bias.float(), True),
        winograd.backward_input(single[2], single[1]),
        winograd.backward_weight(single[0], single[2]),
    ]
    for value, expected in zip(found, (y, grad_x, grad_weight), strict=True):
        assert (value.double() - expected).abs().max() < 3e-5 * expected.abs().max()


@needs_winograd
def test_winograd_gives_the_same_bits_on_any_number_of_threads():
    x, weight, grad = (
        torch.randn(2, 64, 30, 33),
        torch.randn(64, 64, 3, 3),
        torch.randn(2, 64, 30, 33),
    )
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(
            [
                winograd.convolve_3x3(x, weight, None, False),
                winograd.backward_input(grad, weight),
                winograd.backward_weight(x, grad),
            ]
        )
    torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@needs_winograd
def test_winograd_reads_weights_in_any_order_of_memory():
    x, weight = torch.randn(1, 64, 20, 20), torch.randn(64, 64, 3, 3)
    turned = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        winograd.convolve_3x3(x, weight, None, False), winograd.convolve_3x3(x, turned, None, False)
    )
    assert torch.equal(winograd.backward_input(x, weight), winograd.backward_input(x, turned))


@needs_winograd
def test_a_nan_is_not_lost_in_relu():
    x = torch.zeros(1, 16, 4, 4)
    x[0, 0, 0, 0] = float('nan')
    y = winograd.convolve_3x3(x, torch.ones(16, 16, 3, 3), None, True)
    assert y[0, :, 0, 0].isnan().all()


@pytest.mark.parametrize('case', ['float64', 'scale with gradient', 'autocast', 'groups'])
def test_elsewhere_it_is_pytorchs(case):
    dtype = torch.float64 if case == 'float64' else torch.float32
    leaves, window, _ = parts('pointwise', dtype=dtype)
    if case == 'scale with gradient':
        leaves['scale'].requires_grad_()
    if case == 'groups':
        leaves['weight'] = leaves['weight'][:, :4]
    args = [*leaves.values()]
    ordered = (*args[:3], window, *args[3:], False)
    with torch.autocast('cpu', enabled=case == 'autocast'):
        assert BACKENDS.choose('auto', *ordered).name == 'reference'


def test_nothing_but_inputs_weight_and_result_is_kept_for_the_backward_pass():
    kept = []
    leaves, window, _ = parts('pointwise')
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = convolved(*list(leaves.values())[:3], window, leaves['scale'], leaves['residual'], True)
    pointers = {value.data_ptr() for value in (*leaves.values(), y)}
    sizes = sum(value.numel() for value in kept if value.data_ptr() not in pointers)
    # The map itself was brought into channels-last order.
    assert sizes <= leaves['x'].numel()


@pytest.mark.parametrize('form', ['pointwise, stride 2, odd size', 'winograd', 'stride 2'])
def test_second_derivatives_are_pytorchs(form):
    """Of the squared gradients of all leaves, with respect to all of them."""
    found = []
    for function in (convolved, convolve_reference):
        leaves, window, grad = parts(form)
        y = function(*list(leaves.values())[:3], window, leaves['scale'], leaves['residual'], True)
        wanted = [leaf for name, leaf in leaves.items() if name != 'scale']
        first = torch.autograd.grad((y.square() * grad).sum(), wanted, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()


@needs_winograd
def test_winograd_on_more_tiles_than_a_batch_of_them():
    """And on weights in another order of memory, with a bias whose numbers do not lie together."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 128, 100, 98, generator=generator) for _ in range(2))
    weight = torch.randn(128, 128, 3, 3, generator=generator)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(256, generator=generator)[::2]
    exact = [value.double() for value in (x, weight, bias, grad)]
    y = torch.conv2d(*exact[:3], 1, 1)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        exact[3], *exact[:2], None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    found = [
        winograd.convolve_3x3(x, weight, bias, False),
        winograd.backward_input(grad, weight),
        winograd.backward_weight(x, grad),
    ]
    for value, expected in zip(found, (y, grad_x, grad_weight), strict=True):
        assert (value.double() - expected).abs().max() < 3e-5 * expected.abs().max()


@needs_onednn
def test_a_frozen_weight_has_no_gradient():
    leaves, window, grad = parts('pointwise')
    leaves['weight'].requires_grad_(False)
    y = convolved(*list(leaves.values())[:3], window, leaves['scale'], leaves['residual'], True)
    y.backward(grad)
    assert leaves['weight'].grad is None
    assert leaves['x'].grad is not None


def test_torch_func_differentiates_it():
    leaves, window, _ = parts('pointwise', scale=False, residual=False)
    x, weight, bias = (leaves[name].detach() for name in ('x', 'weight', 'bias'))

    def loss(weight):
        return convolve(x, weight, bias, window).square().sum()

    leaf = weight.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(weight), leaf.grad, rtol=1e-4, atol=1e-4)
