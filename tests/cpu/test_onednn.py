"""oneDNN's linear layers, against the public operators in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from mmseg_m2f.cpu import onednn

pytestmark = pytest.mark.skipif(
    onednn.failure() is not None, reason='this PyTorch has no oneDNN as it is used here'
)
SHAPES = [(7,), (3, 7), (2, 3, 7), (2, 0, 7), (1, 900, 64)]


def parts(shape, dtype=torch.float32):
    """Leaves ``x``, weight, bias and residual of a layer with 5 outputs."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (5, shape[-1]), (5,), (*shape[:-1], 5))
    values = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return [value.to(dtype).requires_grad_() for value in values]


def public(x, weight, bias, *, relu=False, residual=None):
    y = F.linear(x, weight, bias)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def bound(depth: int, size: float = 1) -> float:
    """Error of a float32 sum of ``depth`` products of normal numbers; ``size`` scales them."""
    return 4 * torch.finfo(torch.float32).eps * depth * size


def check(function_of, shape, depth):
    """Compare what ``function_of(linear, leaves)`` returns, with ours in float32 and in float64."""
    leaves = [parts(shape, dtype) for dtype in (torch.float32, torch.float64)]
    found, exact = function_of(onednn.linear, leaves[0]), function_of(public, leaves[1])
    for got, expected in zip(found, exact, strict=True):
        assert got.shape == expected.shape
        scale = 1 + float(expected.abs().max()) if expected.numel() else 1
        allowed = bound(depth, scale)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=allowed)


@pytest.mark.parametrize('options', [*itertools.product([False, True], repeat=3)], ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_results_and_gradients_are_those_of_float64(shape, options):
    relu, with_bias, with_residual = options

    def results(function, leaves):
        x, weight, bias, residual = leaves
        bias, residual = bias if with_bias else None, residual if with_residual else None
        y = function(x, weight, bias, relu=relu, residual=residual)
        used = [leaf for leaf in (x, weight, bias, residual) if leaf is not None]
        # The gradient of the result must not be 0 where ReLU makes the result 0.
        return [y.detach(), *torch.autograd.grad((y - 1).square().sum(), used)]

    longest_sum = max(shape[-1], 5, math.prod(shape[:-1]))
    check(results, shape, depth=longest_sum**0.5)


def test_second_derivatives_are_those_of_float64():
    def results(function, leaves):
        x, weight, bias, residual = leaves
        y = function(x, weight, bias, relu=True, residual=residual)
        first = torch.autograd.grad((y - 1).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    check(results, (2, 3, 7), depth=64)


@torch.no_grad()
def test_gelu_is_the_exact_one():
    x, weight, bias, _ = parts((4, 7))
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    got = onednn.linear_gelu(x, weight, bias).double()
    torch.testing.assert_close(got, exact, rtol=0, atol=bound(7, 4))


@torch.no_grad()
def test_inputs_and_weights_may_have_any_strides():
    x, weight, bias, residual = parts((4, 6, 6))
    x = x.transpose(1, 2)
    for turned in (weight.T.contiguous().T, weight.expand(5, 6)[:, ::1], weight[:, [0] * 6]):
        got = onednn.linear(x, turned, bias, residual=residual)
        exact = public(*(value.double() for value in (x, turned, bias)), residual=residual.double())
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=bound(6, 8))


def test_a_frozen_weight_gets_no_gradient_and_sizes_that_do_not_fit_raise():
    x, weight, bias, _ = parts((4, 7))
    onednn.linear(x, weight.detach(), bias).sum().backward()
    assert weight.grad is None
    assert x.grad is not None
    with pytest.raises(RuntimeError):
        onednn.linear(x[:, :3], weight, bias)


class Marked(Tensor):
    """A weight of its own kind."""


# PyTorch's switch speaks of other devices' types.
@pytest.mark.filterwarnings('ignore:TF32 acceleration')
@pytest.mark.filterwarnings('ignore:`torch.jit.trace:DeprecationWarning')
def test_objections():
    x, weight = torch.zeros(2, 3), torch.nn.Parameter(torch.zeros(4, 3))
    assert onednn.objection(x, weight) is None
    assert 'float32' in onednn.objection(x.double(), weight)
    assert 'CPU' in onednn.objection(x.to('meta'), weight)
    assert 'subclass' in onednn.objection(x, weight.as_subclass(Marked))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert 'autocast' in onednn.objection(x, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert 'switched off' in onednn.objection(x, weight)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert 'forward-mode' in onednn.objection(dual, weight)
    objections = []
    torch.func.vmap(lambda row: objections.append(onednn.objection(row)) or row)(x)
    torch.jit.trace(lambda x: objections.append(onednn.objection(x)) or x * 2, x, check_trace=False)
    assert all(objections)


def test_the_probe_objects_to_wrong_numbers_and_missing_operators(monkeypatch, caplog):
    class Wrong:
        def __call__(self, x, weight, *_):
            return F.linear(x, weight)

        def binary(self, x, residual, weight, *_):
            return F.linear(x, weight)

    class Missing:
        def __call__(self, *_):
            raise RuntimeError('no such operator')

    x = torch.zeros(2, 3)
    for operator, reason in ((Wrong(), 'other numbers'), (Missing(), 'no such operator')):
        monkeypatch.setattr(onednn, '_operator', lambda operator=operator: operator)
        onednn.failure.cache_clear()
        caplog.clear()
        try:
            assert reason in onednn.objection(x)
            assert reason in onednn.objection(x)
            assert len(caplog.records) == 1
        finally:
            onednn.failure.cache_clear()
