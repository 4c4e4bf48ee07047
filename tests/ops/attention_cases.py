"""Inputs of deformable attention, and a plain implementation that every back end has to equal."""

from typing import NamedTuple

import torch

# A result is computed in float32 and rounded once, by up to half a unit in the last place.
ROUNDING = {
    torch.float64: 0,
    torch.float32: 0,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-8,
}
# Sums of some hundred products of numbers around one, at positions up to some 20 pixels (known to
# 2e-6 in float32) on maps that rise by one or two per pixel.
SUMMING = {torch.float64: 1e-10, torch.float32: 5e-5}


class Case(NamedTuple):
    value: torch.Tensor
    level_shapes: list[tuple[int, int]]
    reference_points: torch.Tensor
    offsets: torch.Tensor
    logits: torch.Tensor

    @property
    def leaves(self):
        return self.value, self.offsets, self.logits

    def with_leaves(self, value, offsets, logits):
        return self._replace(value=value, offsets=offsets, logits=logits)


def make_case(
    level_shapes,
    *,
    batch=2,
    queries=5,
    heads=2,
    head_dim=8,
    points=2,
    dtype=torch.float32,
    samples_dtype=None,
    device='cpu',
):
    """Random inputs with points up to several pixels outside the maps."""
    samples = (batch, queries, heads, len(level_shapes), points)
    tokens = sum(height * width for height, width in level_shapes)
    samples_dtype = samples_dtype or dtype
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return Case(
        torch.randn(batch, tokens, heads, head_dim, device=device).to(dtype),
        level_shapes,
        torch.rand(queries, 2, dtype=exact, device=device),
        3 * torch.randn(*samples, 2, device=device).to(samples_dtype),
        3 * torch.randn(samples, device=device).to(samples_dtype),
    )


def scattered(case):
    """The same numbers in tensors that are not contiguous."""
    leaves = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in case.leaves]
    points = case.reference_points.T.contiguous().T
    assert not any(x.is_contiguous() for x in (*leaves, points))
    return case.with_leaves(*leaves)._replace(reference_points=points)


def by_indexing(value, level_shapes, reference_points, offsets, logits):
    """Each sample gathers its four pixels one by one."""
    image = torch.arange(len(value)).view(-1, 1, 1, 1)
    head = torch.arange(value.shape[2]).view(-1, 1)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    out, start = 0, 0
    for level, (height, width) in enumerate(level_shapes):
        reference = reference_points[:, None, None] * torch.tensor([width, height])
        x, y = (reference + offsets[:, :, :, level] - 0.5).unbind(-1)  # (B, Q, heads, P)
        for right, below in ((0, 0), (0, 1), (1, 0), (1, 1)):
            column, row = x.detach().floor() + right, y.detach().floor() + below
            is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * is_inside
            token = (start + (row * width + column) * is_inside).long()
            pixel = value[image, token, head]  # (B, Q, heads, P, D)
            out = out + ((share * weights[:, :, :, level])[..., None] * pixel).sum(-2)
        start += height * width
    return out.flatten(2)


def with_gradients(function, case, grad_out):
    """Return the output and the gradients of value, offsets and logits."""
    leaves = [leaf.detach().requires_grad_() for leaf in case.leaves]
    out = function(*case.with_leaves(*leaves))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out.to(out.dtype))]


def check(function, case, rounding=ROUNDING):
    """Compare output and gradients with those in float64, from the same rounded inputs."""
    batch, queries, heads = case.logits.shape[:3]
    grad_out = torch.randn(batch, queries, heads * case.value.shape[-1]).to(case.value)
    double = Case(*(x.cpu().double() if isinstance(x, torch.Tensor) else x for x in case))
    expected = with_gradients(by_indexing, double, grad_out.cpu().double())
    found = with_gradients(function, case, grad_out)
    summing = SUMMING[case.reference_points.dtype]
    for got, exact, like in zip(found, expected, (case.value, *case.leaves), strict=True):
        assert got.dtype == like.dtype
        torch.testing.assert_close(
            got.cpu().double(), exact, rtol=rounding[like.dtype], atol=summing
        )
