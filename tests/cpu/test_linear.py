"""The affine map, on oneDNN where that may be and as PyTorch has it elsewhere."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_m2f.cpu import linear


class Products(TorchDispatchMode):
    """Notes the operators that ran, and the weights that oneDNN was given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        if func.name() == 'mkldnn::_linear_pointwise':
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))

    @property
    def onednn(self) -> bool:
        return 'mkldnn::_linear_pointwise' in self.names


def parts(*shape: int, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in (shape, (5, shape[-1]), (5,))
    )
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.einsum('...c,dc->...d', x.double(), weight.double())
    return product if bias is None else product + bias.double()


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='this PyTorch has no oneDNN'
)


@needs_onednn
@pytest.mark.parametrize('shape', [(7,), (3, 7), (2, 3, 7), (2, 0, 7), (1, 900, 64)])
@pytest.mark.parametrize('with_bias', [True, False])
def test_without_gradient_onednn_gives_the_product(shape, with_bias):
    x, weight, bias = parts(*shape)
    with torch.no_grad(), Products() as products:
        got = linear(x, weight, bias if with_bias else None)
    assert products.onednn
    expected = exact(x, weight, bias if with_bias else None)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * shape[-1] ** 0.5)


@needs_onednn
def test_strides_are_minded():
    x, weight, bias = parts(4, 6, 6)
    with torch.no_grad():
        got = linear(x.transpose(1, 2)[:, ::2], weight.T.contiguous().T, bias)
    expected = exact(x.transpose(1, 2)[:, ::2], weight, bias)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


class Marked(Tensor):
    """A weight of its own kind."""


# PyTorch's switch speaks of other devices' types.
@pytest.mark.filterwarnings('ignore:TF32 acceleration')
@pytest.mark.parametrize('case', ['double', 'autocast', 'subclass', 'switched off'])
def test_elsewhere_it_is_pytorchs(case):
    x, weight, bias = parts(2, 3, 7, dtype=torch.float64 if case == 'double' else torch.float32)
    if case == 'subclass':
        weight = weight.as_subclass(Marked)
    with (
        torch.no_grad(),
        torch.autocast('cpu', dtype=torch.bfloat16, enabled=case == 'autocast'),
        torch.backends.mkldnn.flags(enabled=case != 'switched off'),
    ):
        expected = F.linear(x, weight, bias)
        with Products() as products:
            got = linear(x, weight, bias)
    assert not products.onednn
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


def test_gradients_are_pytorchs():
    x, weight, bias = (value.requires_grad_() for value in parts(2, 3, 7, dtype=torch.float64))
    assert torch.autograd.gradcheck(linear, (x, weight, bias))


@needs_onednn
@pytest.mark.parametrize('shape', [(7,), (2, 3, 7), (2, 0, 7), (1, 900, 64)])
@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize('with_bias', [True, False])
def test_gradients_on_onednn_are_those_of_float64(shape, relu, with_bias):
    found = []
    for dtype in (torch.float32, torch.float64):
        x, weight, bias = (value.requires_grad_() for value in parts(*shape, dtype=dtype))
        with Products() as products:
            y = linear(x, weight, bias if with_bias else None, relu=relu)
            leaves = (x, weight, bias) if with_bias else (x, weight)
            # Squared, so that the second derivative is one of all of them.
            first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        assert products.onednn == (dtype == torch.float32)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), leaves)
        found.append([y, *first, *second])
    for value, expected in zip(*found, strict=True):
        scale = float(expected.detach().abs().max()) if expected.numel() else 0
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-5 * scale)


def test_an_exporter_sees_pytorchs_operator():
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(parts(3, 7)[1])

        def forward(self, x: Tensor) -> Tensor:
            return linear(x, self.weight, None)

    with torch.no_grad():
        program = torch.export.export(Layer(), (parts(3, 7)[0],))
    assert 'mkldnn' not in str(program.graph)


@pytest.mark.parametrize(
    ('x', 'weight', 'bias', 'message'),
    [
        ((6, 5), (3, 4), (3,), 'cannot be multiplied'),
        ((6, 4), (3, 4), (2,), 'expand|size'),
    ],
)
def test_what_does_not_fit_is_reported_as_pytorch_does(x, weight, bias, message):
    unchecked = inspect.unwrap(linear)  # tests check the shapes of annotations
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        unchecked(torch.ones(x), torch.ones(weight), torch.ones(bias))


def test_no_channels_at_all():
    with torch.no_grad():
        got = linear(torch.ones(2, 0), torch.ones(3, 0), torch.arange(3.0))
    assert torch.equal(got, torch.arange(3.0).expand(2, 3))


def test_a_forward_derivative_is_kept():
    x, weight, bias = parts(2, 7)
    tangent = torch.randn_like(x)
    with torch.no_grad(), forward_ad.dual_level():
        got = forward_ad.unpack_dual(linear(forward_ad.make_dual(x, tangent), weight, bias))
    torch.testing.assert_close(got.tangent, tangent @ weight.T)


@needs_onednn
@pytest.mark.parametrize('gradient', [False, True])
def test_onednn_gets_weights_without_gaps(gradient):
    # With gaps it falls back to loops that take a thousand times as long.
    x, wide = torch.randn(5, 6), torch.randn(4, 8)
    sliced = [wide[:, 1:7], torch.randn(8, 4)[:6, :3].T, torch.randn(8, 6)[::2]]
    dense = [torch.randn(4, 6), torch.randn(6, 4).T, torch.randn(12, 6).chunk(3)[1]]
    with torch.set_grad_enabled(gradient), Products() as products:
        for weight in sliced + dense:
            given = weight.detach().requires_grad_(gradient)
            result = linear(x.clone().requires_grad_(gradient), given, None)
            torch.testing.assert_close(result, x @ weight.T)
            if gradient:
                result.sum().backward()
    assert len(products.weights) == 6 * (1 + gradient)
    assert all(one.is_contiguous() or one.T.is_contiguous() for one in products.weights)
