"""The back end of the package ``deformops``; a stand-in takes the place of the package."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from mmseg_m2f.ops.ms_deform_attn import deformops as backend
from mmseg_m2f.ops.ms_deform_attn.reference import ms_deform_attn_reference


def inputs(*, dtype=torch.float32, levels=2, points=4, head_dim=8, device='cpu'):
    level_shapes = [(3, 4), (2, 1), (1, 1), (1, 1), (1, 1), (1, 1)][:levels]
    tokens = sum(height * width for height, width in level_shapes)
    return (
        torch.randn(2, tokens, 3, head_dim, dtype=dtype, device=device),
        level_shapes,
        torch.rand(5, 2, device=device),
        torch.randn(2, 5, 3, levels, points, 2, device=device),
        torch.randn(2, 5, 3, levels, points, device=device),
    )


def stand_in(value, shapes, starts, locations, weights, /, *, fp32acc=False):
    """What the package documents of ``deformops.registry.msda``, in plain PyTorch."""
    batch, _, heads, _ = value.shape
    _, queries, _, levels, points, _ = locations.shape
    assert weights.shape == (batch, queries, heads, levels * points)
    assert weights.dtype == value.dtype
    assert fp32acc == (value.dtype != torch.float32)
    assert shapes.dtype == starts.dtype == torch.int64
    out = 0
    for level, (height, width) in enumerate(shapes.tolist()):
        start = starts[level].item()
        maps = value[:, start : start + height * width].float().permute(0, 2, 3, 1)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        samples = F.grid_sample(
            maps.flatten(0, 1).unflatten(-1, (height, width)), grid, align_corners=False
        ).unflatten(0, (batch, heads))  # (B, heads, D, Q, P)
        share = weights.float()[..., level * points : (level + 1) * points]
        out = out + torch.einsum('bhdqp,bqhp->bqhd', samples, share)
    return out.flatten(2).to(value.dtype)


@pytest.fixture
def package(monkeypatch):
    module, registry = ModuleType('deformops'), ModuleType('deformops.registry')
    module.__spec__ = ModuleSpec('deformops', None)
    registry.msda = stand_in
    monkeypatch.setitem(sys.modules, 'deformops', module)
    monkeypatch.setitem(sys.modules, 'deformops.registry', registry)
    monkeypatch.setattr(backend, '_MISSING', backend._missing())
    yield
    backend._level_tensors.cache_clear()


def test_it_hands_over_positions_and_weights(package):
    args = inputs()
    leaves = [args[index].requires_grad_() for index in (0, 3, 4)]
    got, expected = (f(*args) for f in (backend.ms_deform_attn_deformops, ms_deform_attn_reference))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), leaves) for out in (got, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_types_get_weights_of_their_type_and_sums_in_float32(package, dtype):
    args = inputs(dtype=dtype)
    got, expected = (f(*args) for f in (backend.ms_deform_attn_deformops, ms_deform_attn_reference))
    assert got.dtype == dtype
    # The weights are rounded too; they add up to one, the values to three or so.
    torch.testing.assert_close(got, expected, rtol=0, atol=3 * torch.finfo(dtype).eps)


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_package_itself_equals_the_reference(dtype):
    pytest.importorskip('deformops')
    given = inputs(device='cuda', head_dim=32)
    results = []
    for function, type_ in (
        (backend.ms_deform_attn_deformops, dtype),
        (ms_deform_attn_reference, torch.float32),
    ):
        value, shapes, points, *samples = given
        leaves = [value.to(type_).requires_grad_(), *(x.clone().requires_grad_() for x in samples)]
        out = function(leaves[0], shapes, points, *leaves[1:])
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    # Values, weights and the gradient of the output are rounded to the type; sums are of some ten.
    room = 1e-4 if dtype == torch.float32 else 30 * torch.finfo(dtype).eps
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.float(), exact, rtol=room, atol=room)


def test_level_tensors_are_made_once(package):
    first, second = (backend._level_tensors(((3, 4), (2, 1)), torch.device('cpu')) for _ in '12')
    assert all(a is b for a, b in zip(first, second, strict=True))
    shapes, starts, extents = first
    assert shapes.tolist() == [[3, 4], [2, 1]]
    assert starts.tolist() == [0, 12]
    assert extents.tolist() == [[[4.0, 3.0]], [[1.0, 2.0]]]


@pytest.mark.parametrize(
    ('change', 'objection'),
    [
        ({}, 'it is for CUDA, got cpu'),
        ({'device': 'meta'}, 'it is for CUDA, got meta'),
    ],
    ids=['cpu', 'meta'],
)
def test_it_objects_to_other_devices(package, change, objection):
    assert backend.why_not(*inputs(**change)) == objection


@pytest.mark.parametrize(
    ('change', 'objection'),
    [
        ({}, None),
        ({'dtype': torch.bfloat16, 'points': 8, 'levels': 5}, None),
        ({'dtype': torch.float64}, 'takes float32, float16 and bfloat16, got torch.float64'),
        ({'levels': 6}, 'up to 5 levels, got 6'),
        ({'points': 3}, '4 or 8 points per level, got 3'),
        ({'head_dim': 12}, 'a multiple of 8 channels, got 12'),
    ],
    ids=['fits', 'largest', 'dtype', 'levels', 'points', 'channels'],
)
def test_what_it_objects_to_on_a_gpu(package, change, objection):
    with torch._subclasses.fake_tensor.FakeTensorMode():
        reason = backend.why_not(*inputs(device='cuda', **change))
    assert reason is None if objection is None else objection in reason


def test_it_says_that_the_package_or_python_is_missing(monkeypatch):
    monkeypatch.setattr(backend, 'find_spec', lambda name: None)
    monkeypatch.setattr(sys, 'version_info', (3, 11, 7, 'final', 0))
    monkeypatch.setattr(backend, '_MISSING', backend._missing())
    assert backend.why_not(*inputs()) == 'the package deformops needs Python 3.12 or 3.13, got 3.11'
    monkeypatch.setattr(sys, 'version_info', (3, 13, 0, 'final', 0))
    assert backend._missing() == 'the package deformops is not installed (pip install deformops)'
