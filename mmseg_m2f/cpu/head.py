"""Faster forwards of the parts of our head."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.core.deform_attn import MSDeformAttn
from mmseg_m2f.core.layers import ConvNorm, FeedForward
from mmseg_m2f.cpu import onednn
from mmseg_m2f.cpu.conditions import may_run
from mmseg_m2f.cpu.convolution import convolve, is_plain
from mmseg_m2f.ops import ms_deform_attn


def feed_forward(self: FeedForward, x: Tensor) -> Tensor:
    """Compute ``core.FeedForward`` as two products, with ReLU in the first, ``x`` in the second."""
    if not may_run(self, x, {nn.Linear}):
        return type(self).forward(self, x)
    hidden = _linear(self.linear1, x, relu=True)
    return _linear(self.linear2, hidden, residual=x)


def deformable_attention(
    self: MSDeformAttn,
    query: Tensor,
    value: Tensor,
    reference_points: Tensor,
    level_shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """Compute ``core.MSDeformAttn`` with its linear layers on oneDNN."""
    if not may_run(self, query, {nn.Linear}):
        return type(self).forward(self, query, value, reference_points, level_shapes)
    samples = (self.num_heads, self.num_levels, self.num_points)
    attended = ms_deform_attn(
        _linear(self.value_proj, value).unflatten(-1, (self.num_heads, -1)),
        level_shapes,
        reference_points,
        _linear(self.sampling_offsets, query).unflatten(-1, (*samples, 2)),
        _linear(self.attention_weights, query).unflatten(-1, samples),
        self.backend,
    )
    return _linear(self.output_proj, attended)


def conv_norm(self: ConvNorm, x: Tensor) -> Tensor:
    """Compute ``core.ConvNorm`` with the faster convolutions."""
    if not (may_run(self, x, {nn.Conv2d, nn.GroupNorm}) and is_plain(self.conv)):
        return type(self).forward(self, x)
    y = self.norm(convolve(self.conv, x, self.conv.weight, self.conv.bias))
    return F.relu(y) if self.activate else y


def _linear(
    layer: nn.Linear, x: Tensor, *, relu: bool = False, residual: Tensor | None = None
) -> Tensor:
    return onednn.linear(x, layer.weight, layer.bias, relu=relu, residual=residual)
