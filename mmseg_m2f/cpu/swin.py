"""Swin Transformers of mmseg and mmdet: blocks a few windows at a time, and patch merging."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_m2f.cpu.custom_call import has_custom_call
from mmseg_m2f.cpu.known_classes import known_classes
from mmseg_m2f.cpu.linear import linear, why_not_onednn

# Tokens that go through a block together: enough of them for the products, which read all weights
# again, and few enough for the caches to hold what is between the products.
TOGETHER = 2048
# What the frameworks add to the logits of tokens that lie side by side by the cyclic shift only.
_APART = -100.0

# The modules inside of another by their paths, and what each may be.
_Expected = dict[str, tuple[type, ...]]


def forward_of(module: nn.Module) -> Callable[..., Any] | None:
    """A faster ``forward`` for a block or a patch merging of exactly a known class, else None.

    None as well where somebody has given the module a ``forward`` of its own.
    """
    if 'forward' in vars(module):
        return None
    if type(module) in known_classes('swin', ('SwinBlock',)):
        return _Block(module).forward
    if type(module) in known_classes('swin', ('PatchMerging',)):
        return _Merging(module).forward
    return None


class _Block:
    """``SwinBlock``: norm, attention in windows, norm, feed-forward.

    Windows are independent of each other and tokens are so outside of the attention. So the block
    is computed from beginning to end for some windows, then for the next. The tokens that fill up
    the windows at the border of a map are not computed: before the attention they are all alike,
    and after it nobody reads them.
    """

    def __init__(self, block: Any) -> None:
        self.block = block
        # Wrappers may exchange the class of a block later, and with it the module it is from.
        self.expected = _in_block(sys.modules[type(block).__module__])

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """As the block's class has it: ``x`` and the result are ``(B, height * width, C)``."""
        if not _may_run_block(self.block, x, hw_shape, self.expected):
            return type(self.block).forward(self.block, x, hw_shape)
        attention = self.block.attn
        plan = _plan(len(x), *map(int, hw_shape), attention.window_size, attention.shift_size)
        added = _added_to_logits(attention.w_msa, plan.kinds)
        tokens = x.flatten(0, 1).contiguous()
        out = torch.empty_like(tokens)
        for group in plan.groups:
            rows = tokens.index_select(0, group.inputs)
            rows = self._feed_forward(self._attend(rows, group, added))
            out[group.inputs[: len(rows)]] = rows
        return out.view(x.shape)

    def _attend(self, rows: Tensor, group: '_Group', added: list[Tensor]) -> Tensor:
        """The first half of the block, for the inputs of a group; the residual included."""
        attention = self.block.attn.w_msa
        x = _normalised(self.block.norm1, rows)
        x[group.num_tokens :] = 0
        qkv = linear(x, attention.qkv.weight, attention.qkv.bias)
        parts = []
        for run in group.runs:
            own = qkv[run.tokens]
            filled = own if run.places is None else qkv.index_select(0, run.places)
            q = _split_heads(own, run.num_windows, attention.num_heads)[0]
            _, k, v = _split_heads(filled, run.num_windows, attention.num_heads)
            part = F.scaled_dot_product_attention(
                q, k, v, attn_mask=added[run.kind], scale=attention.scale
            )
            parts.append(part.transpose(1, 2).reshape(-1, rows.shape[1]))
        return _linear_plus(attention.proj, torch.cat(parts), rows[: group.num_tokens])

    def _feed_forward(self, x: Tensor) -> Tensor:
        """The second half."""
        first, last = self.block.ffn.layers[0][0], self.block.ffn.layers[1]
        hidden = torch.ops.mkldnn._linear_pointwise(
            _normalised(self.block.norm2, x), first.weight, first.bias, 'gelu', [], 'none'
        )
        return _linear_plus(last, hidden, x)


class _Merging:
    """``PatchMerging``: four neighbours become one token."""

    def __init__(self, merging: Any) -> None:
        self.merging = merging
        self.expected = _in_merging(sys.modules[type(merging).__module__])

    def forward(self, x: Tensor, input_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """As the module's class has it."""
        merging = self.merging
        if not _may_run_merging(merging, x, input_size, self.expected):
            return type(merging).forward(merging, x, input_size)
        maps = merging.adap_padding(x.unflatten(1, input_size).permute(0, 3, 1, 2))
        pairs = maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        size = (pairs.shape[2], pairs.shape[4])
        # In two steps: the first moves whole tokens, the second stays within a merged one.
        tokens = pairs.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, x.shape[-1])
        tokens = tokens.transpose(1, 2).reshape(len(x), size[0] * size[1], -1)
        tokens = _normalised(merging.norm, tokens)
        return linear(tokens, merging.reduction.weight, merging.reduction.bias), size


def _split_heads(qkv: Tensor, num_windows: int, num_heads: int) -> Tensor:
    """Queries, keys and values, each ``(windows, heads, N, D)``: ``(3, ...)``."""
    channels = qkv.shape[1] // 3
    by_head = qkv.view(num_windows, -1, 3, num_heads, channels // num_heads)
    return by_head.permute(2, 0, 3, 1, 4)


def _normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _linear_plus(layer: nn.Linear, x: Tensor, residual: Tensor) -> Tensor:
    total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
        x, residual, layer.weight, layer.bias, 'add'
    )
    return total


def _added_to_logits(attention: Any, kinds: list['_Kind']) -> list[Tensor]:
    """In the windows of each kind: ``(1, heads, queries, keys)``."""
    index = attention.relative_position_index
    table = attention.relative_position_bias_table.t().contiguous()
    bias = table.index_select(1, index.flatten()).view(1, -1, *index.shape)
    added = []
    for mask, read in kinds:
        rows = bias if mask is None else bias + mask
        added.append(rows if read is None else rows.index_select(2, read))
    return added


class _Kind(NamedTuple):
    """Windows that differ in their tokens only.

    ``mask`` is added to the logits ``(N, N)``; ``read`` are the places of the map's tokens in the
    window, None if that is full.
    """

    mask: Tensor | None
    read: Tensor | None


class _Run(NamedTuple):
    """Windows of one kind next to each other in a group.

    ``tokens`` are those of the map; ``places`` takes from the inputs of the group what is in the
    windows, None if these are the same.
    """

    kind: int
    num_windows: int
    tokens: slice
    places: Tensor | None


class _Group(NamedTuple):
    """Windows that are computed together.

    ``inputs`` are the ``num_tokens`` tokens of the map that are in them, window by window, and one
    more that stands for all places to fill up, if there are any.
    """

    inputs: Tensor
    num_tokens: int
    runs: list[_Run]


class _Plan(NamedTuple):
    """The windows of a map, in groups, and their kinds."""

    groups: list[_Group]
    kinds: list[_Kind]


@functools.lru_cache(maxsize=32)
def _plan(batch: int, height: int, width: int, window: int, shift: int) -> _Plan:
    """Of a stage, for all blocks with the same shift."""
    # What is kept has to be usable whichever mode comes next.
    with torch.inference_mode(mode=False), torch.device('cpu'):
        num_groups = max(1, round(batch * height * width / TOGETHER))
        tokens = _windows(batch, height, width, window, shift)
        height, width = tokens.shape[1:3]
        borders = _borders(height, width) if shift else torch.zeros(height, width)
        borders = borders.expand(tokens.shape[:3]).flatten().long()
        tokens = tokens.flatten(0, 2).flatten(1)
        described = torch.cat([borders[:, None], (tokens >= 0).long()], 1)
        found, kinds = described.unique(dim=0, return_inverse=True)
        order = kinds.argsort(stable=True)
        length = -(-len(tokens) // num_groups)
        groups = [_group(tokens[some], kinds[some]) for some in order.split(length)]
        return _Plan(groups, [_kind(row, window, shift) for row in found])


def _windows(batch: int, height: int, width: int, window: int, shift: int) -> Tensor:
    """The tokens in each window, -1 where it is to be filled up: ``(B, h, w, window, window)``."""
    rows, columns = (_lines(length, window, shift) for length in (height, width))
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    filling = (rows < 0) | (columns < 0)
    first = torch.arange(batch).view(-1, 1, 1, 1, 1) * (height * width)
    return (first + rows * width + columns).masked_fill(filling, -1)


def _borders(height: int, width: int) -> Tensor:
    """Which windows of a shifted map hold what was at the opposite border, too.

    2 is those at the lower border, 1 at the right one, 3 in the corner.
    """
    borders = torch.zeros(height, width)
    borders[-1] += 2
    borders[:, -1] += 1
    return borders


def _lines(length: int, window: int, shift: int) -> Tensor:
    """The rows (or columns) in each row (or column) of windows; -1 is none of the map."""
    filled = -(-length // window) * window
    lines = (torch.arange(filled) + shift) % filled
    return lines.masked_fill(lines >= length, -1).view(-1, window)


def _group(windows: Tensor, kinds: Tensor) -> _Group:
    is_token = windows >= 0
    tokens = windows[is_token]
    places = torch.full_like(windows, len(tokens))
    places[is_token] = torch.arange(len(tokens))
    runs, first = [], 0
    found, lengths = kinds.unique_consecutive(return_counts=True)
    for kind, run in zip(found.tolist(), places.split(lengths.tolist()), strict=True):
        num_tokens = int((run < len(tokens)).sum())
        of_run = slice(first, first + num_tokens)
        full = num_tokens == run.numel()
        runs.append(_Run(kind, len(run), of_run, None if full else run.flatten()))
        first += num_tokens
    if is_token.all():
        return _Group(tokens, len(tokens), runs)
    return _Group(torch.cat([tokens, tokens[:1]]), len(tokens), runs)


def _kind(described: Tensor, window: int, shift: int) -> _Kind:
    """Of a border as `_borders` counts them, followed by which places hold a token."""
    border, is_token = int(described[0]), described[1:].bool()
    read = None if is_token.all() else is_token.nonzero()[:, 0]
    if not border:
        return _Kind(None, read)
    wrapped = torch.arange(window) >= window - shift
    rows = (wrapped & bool(border & 2))[:, None]
    columns = (wrapped & bool(border & 1))[None, :]
    part = (2 * rows + columns).flatten()
    return _Kind(torch.where(part[:, None] == part, 0.0, _APART), read)


def _may_run_block(block: Any, x: Tensor, hw_shape: tuple[int, int], expected: _Expected) -> bool:
    """Whether the block is as its class builds it, in evaluation mode and not watched inside."""
    return (
        _may_run(block, x, hw_shape, expected)
        and x.shape[2] == block.attn.w_msa.embed_dims
        and block.ffn.layers[0][1].approximate == 'none'
        and block.ffn.add_identity
    )


def _may_run_merging(
    merging: Any, x: Tensor, input_size: tuple[int, int], expected: _Expected
) -> bool:
    """As `_may_run_block`; of blocks of 2 x 2 without a gap."""
    sampler = merging.sampler
    settings = (sampler.kernel_size, sampler.stride, sampler.dilation, sampler.padding)
    return (
        _may_run(merging, x, input_size, expected)
        and settings == ((2, 2), (2, 2), (1, 1), (0, 0))
        and 4 * x.shape[2] == merging.reduction.in_features
    )


def _may_run(module: Any, x: Tensor, size: tuple[int, int], expected: _Expected) -> bool:
    if torch.is_grad_enabled() or module.training:
        return False
    if why_not_onednn(x, *module.parameters()) is not None:
        return False
    inner = dict(module.named_modules())
    del inner['']
    return (
        x.dim() == 3
        and x.numel() > 0
        and x.shape[1] == size[0] * size[1]
        and inner.keys() == expected.keys()
        and all(type(child) in expected[path] for path, child in inner.items())
        and not any(child.training or has_custom_call(child) for child in inner.values())
    )


@functools.cache
def _in_block(library: Any) -> _Expected:
    """The modules in a block of ``library`` by their paths, and what each may be."""
    from mmcv.cnn.bricks import drop, wrappers
    from mmengine.model import Sequential

    drops = (drop.DropPath, drop.Dropout, nn.Dropout, nn.Identity)
    linears = (nn.Linear, wrappers.Linear)
    sequentials = (nn.Sequential, Sequential)
    return {
        'norm1': (nn.LayerNorm,),
        'attn': (library.ShiftWindowMSA,),
        'attn.w_msa': (library.WindowMSA,),
        'attn.w_msa.qkv': linears,
        'attn.w_msa.attn_drop': drops,
        'attn.w_msa.proj': linears,
        'attn.w_msa.proj_drop': drops,
        'attn.w_msa.softmax': (nn.Softmax,),
        'attn.drop': drops,
        'norm2': (nn.LayerNorm,),
        'ffn': (library.FFN,),
        'ffn.layers': sequentials,
        'ffn.layers.0': sequentials,
        'ffn.layers.0.0': linears,
        'ffn.layers.0.1': (nn.GELU,),
        'ffn.layers.0.2': drops,
        'ffn.layers.1': linears,
        'ffn.layers.2': drops,
        'ffn.dropout_layer': drops,
        'ffn.gamma2': (nn.Identity,),
    }


def _in_merging(library: Any) -> _Expected:
    """As `_in_block`."""
    return {
        'adap_padding': (library.AdaptivePadding,),
        'sampler': (nn.Unfold,),
        'norm': (nn.LayerNorm,),
        'reduction': (nn.Linear,),
    }
