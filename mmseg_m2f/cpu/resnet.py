"""Residual networks of mmseg and mmdet: their blocks and their stem, convolution by convolution."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmseg_m2f.cpu.convolution import Window, convolve
from mmseg_m2f.cpu.custom_call import has_custom_call
from mmseg_m2f.cpu.known_classes import known_classes
from mmseg_m2f.cpu.linear import why_not_onednn

_BLOCKS = ('BasicBlock', 'Bottleneck')
_NETWORKS = ('ResNet', 'ResNetV1c', 'ResNetV1d')


def forward_of(module: nn.Module) -> Callable[..., Any] | None:
    """A faster ``forward`` for a block or a network of exactly a known class, else None."""
    if 'forward' in vars(module):  # somebody's own, or ours already
        return None
    if type(module) in known_classes('resnet', _BLOCKS):
        return _Block(module).forward
    if type(module) in known_classes('resnet', _NETWORKS):
        return _Network(module).forward
    return None


class _Block:
    """``BasicBlock`` and ``Bottleneck``: convolutions with their norms, the shortcut, ReLU."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """As the block's class has it."""
        block = self.block
        if why_not_onednn(x) is not None or not self._is_known():
            return type(block).forward(block, x)
        if block.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _is_known(self) -> bool:
        block = self.block
        pairs = [*self._pairs(), *_tail(block.downsample)]
        return (
            not getattr(block, 'with_plugins', False)
            and all(_is_plain(convolution) for convolution, _ in pairs)
            and type(block.relu) is nn.ReLU
            and not any(has_custom_call(part) for part in block.modules() if part is not block)
        )

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        block = self.block
        return [
            (getattr(block, f'conv{index}'), getattr(block, f'norm{index}'))
            for index in (1, 2, 3)
            if hasattr(block, f'conv{index}')
        ]

    def _forward(self, x: Tensor) -> Tensor:
        *first, last = self._pairs()
        shortcut, out = x, x
        if self.block.downsample is not None:
            for part in self.block.downsample[:-2]:
                shortcut = part(shortcut)
            shortcut = _run(*_tail(self.block.downsample)[0], shortcut)
        for convolution, norm in first:
            out = _run(convolution, norm, out, relu=True)
        return _run(*last, out, residual=shortcut, relu=True)


class _Network:
    """``ResNet``: the stem with its norm, the stages, the maps asked for."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As the network's class has it."""
        network = self.network
        if network.deep_stem or why_not_onednn(x) is not None or not self._is_known():
            return type(network).forward(network, x)
        x = network.maxpool(_run(network.conv1, network.norm1, x, relu=True))
        maps = []
        for index, name in enumerate(network.res_layers):
            x = getattr(network, name)(x)
            if index in network.out_indices:
                maps.append(x)
        return tuple(maps)

    def _is_known(self) -> bool:
        network = self.network
        stem = (network.conv1, network.norm1, network.relu)
        return (
            _is_plain(network.conv1)
            and type(network.relu) is nn.ReLU
            and not any(has_custom_call(part) for part in stem)
        )


def _tail(downsample: nn.Sequential | None) -> list[tuple[nn.Module, nn.Module]]:
    """The convolution of a shortcut and its norm, which come last."""
    return [] if downsample is None else [(downsample[-2], downsample[-1])]


def _is_plain(convolution: nn.Module) -> bool:
    """Whether ``convolve`` can say what it does."""
    return (
        type(convolution) is nn.Conv2d
        and convolution.groups == 1
        and convolution.padding_mode == 'zeros'
        and not isinstance(convolution.padding, str)
        and all(
            len(set(pair)) == 1
            for pair in (convolution.stride, convolution.padding, convolution.dilation)
        )
    )


def _run(
    convolution: Any,
    norm: nn.Module,
    x: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``relu(norm(convolution(x)) + residual)``."""
    window = Window(convolution.stride[0], convolution.padding[0], convolution.dilation[0])
    weight, bias = convolution.weight, convolution.bias
    affine = _affine(norm)
    if affine is None:
        out = norm(convolve(x, weight, bias, window))
        out = out if residual is None else out.add_(residual)
        return torch.relu_(out) if relu else out
    scale, shift = affine
    if bias is not None:
        shift = bias if shift is None else shift + bias * scale
    if scale is not None and scale.requires_grad:
        weight, scale = weight * scale[:, None, None, None], None
    return convolve(x, weight, shift, window, scale=scale, residual=residual, relu=relu)


def _affine(norm: nn.Module) -> tuple[Tensor | None, Tensor | None] | None:
    """Factor and summand of each channel; None if they depend on the map."""
    if isinstance(norm, nn.Identity):  # fused before
        return None, None
    if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) or norm.training:
        return None
    if type(norm).forward not in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward):
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
