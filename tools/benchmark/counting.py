"""Counts of a piece of work that noise cannot touch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from mmseg_m2f.core import decoder as core_decoder
from mmseg_m2f.core.layers import resize_maps
from mmseg_m2f.core.structures import upcast_half

# Operators that wait for a GPU: a value or a size that depends on the data goes to the host.
_WAITING = (
    '_local_scalar_dense',
    'nonzero',
    'masked_select',
    '_unique2',
    'unique_dim',
    'unique_consecutive',
    'bincount',
)
_INDEXING = ('index', 'index_put', 'index_put_', '_index_put_impl_')
_TO_HOST = ('cpu', 'tolist')
_CONVOLUTION = 'mmseg_m2f::convolve'
# Deviation of the mask logits of a trained model.
TRAINED_LOGITS = 10.0


class Counts(NamedTuple):
    """Of one step. FLOPs are of matrix products, attention and convolutions.

    Calls are of ATen's operators, and of those that stand in for one: oneDNN's, our convolutions.
    """

    flops: int
    aten_calls: int
    saved_bytes: int
    synchronisations: int


class _Operators(TorchDispatchMode):
    """Counts calls of ATen's operators, and those that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then call."""
        self.calls += func.namespace in ('aten', 'mkldnn') or func.name().startswith(_CONVOLUTION)
        self.waits += _waits(func, args)
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: Any) -> bool:
    name = func.name().removeprefix('aten::').split('.')[0]
    if name in _INDEXING:
        # A boolean index becomes one of numbers, whose count the host must know.
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return name in _WAITING


def count(step: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> Counts:
    """Of one call of ``step``; what is saved for backward is counted without ``parameters``."""
    operators = _Operators()
    flops = FlopCounterMode(display=False, custom_mapping=formulas())
    flops.mod_tracker = _NoModules()  # type: ignore[assignment]
    with _saved_bytes(parameters) as saved, _copies_to_host() as copies, operators, flops:
        step()
    return Counts(
        flops.get_total_flops(), operators.calls, sum(saved.values()), operators.waits + len(copies)
    )


class _NoModules:
    """In the place of what tells PyTorch's counter the modules, by hooks: they change what runs."""

    parents = frozenset({'Global'})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def formulas() -> dict[Any, Callable[..., int]]:
    """Of what PyTorch's counter does not know: attention on a CPU, and what stands for ATen's."""
    ours = torch.ops.mmseg_m2f
    return {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_grad_flops,
        torch.ops.mkldnn._linear_pointwise: _linear_flops,
        ours.convolve_3x3: _winograd_flops,
        ours.convolve_3x3_backward_input: _winograd_flops,
        ours.convolve_3x3_backward_weight: _winograd_weight_flops,
    }


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_grad_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _linear_flops(x: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(out_shape) * x[-1]


def _winograd_flops(x: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return _products_of_points(x) * x[1] * out_shape[1]


def _winograd_weight_flops(x: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return _products_of_points(x) * out_shape[0] * out_shape[1]


def _products_of_points(x: Sequence[int]) -> int:
    """For a pair of channels: 36 points of every tile of 4 x 4 pixels."""
    batch, _, height, width = x
    return 2 * 36 * batch * -(-height // 4) * -(-width // 4)


@contextmanager
def _saved_bytes(parameters: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of each storage kept for backward, by its address."""
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    saved: dict[int, int] = {}
    # No address may come back while the step runs.
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and storage.data_ptr() not in saved:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


@contextmanager
def _copies_to_host() -> Iterator[list[str]]:
    """Calls that copy to the host wherever the tensor is: on a CPU they reach no operator."""
    calls: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(self, *args, **kwargs)

        return method

    patches = [mock.patch.object(Tensor, name, noting(name)) for name in _TO_HOST]
    for patch in patches:
        patch.start()
    try:
        yield calls
    finally:
        for patch in patches:
            patch.stop()


class Embeddings(NamedTuple):
    """Of one prediction whose mask becomes an attention mask, in float32."""

    mask_embed: Tensor
    mask_features: Tensor
    size: tuple[int, int]


@contextmanager
def noting_embeddings(head: Any) -> Iterator[list[Embeddings]]:
    """Collects what the attention masks of one of our heads are made from."""
    noted: list[Embeddings] = []
    features: list[Tensor] = []
    original = core_decoder.attention_mask
    hook = head.pixel_decoder.register_forward_hook(
        lambda _, __, output: features.append(output.mask_features)
    )

    def attention_mask(mask_embed: Tensor, pooled_features: Tensor) -> Tensor:
        height, width = pooled_features.shape[-2:]
        noted.append(Embeddings(mask_embed, features[-1], (height, width)))
        return original(mask_embed, pooled_features)

    with mock.patch.object(core_decoder, 'attention_mask', attention_mask):
        yield noted
    hook.remove()


class Flips(NamedTuple):
    """Attention bits of ours, and of the official order, that differ from it in float64."""

    ours: int
    official: int
    bits: int


def sign_flips(noted: Iterable[Embeddings], dtype: torch.dtype, *, trained: bool) -> Flips:
    """In a type that embeddings and features are rounded to, for all three alike.

    The official order forms masks at stride 4, resizes them and compares the sigmoid with one half,
    in the type; ours pools the features and multiplies in float32. ``trained`` scales the logits to
    the deviation they have after training.
    """
    ours = official = bits = 0
    for embed, features, size in noted:
        masks = torch.einsum('bqc,bchw->bqhw', embed, features)
        # In the embeddings and the features alike: half a type has no room for one large factor.
        factor = math.sqrt(TRAINED_LOGITS / float(masks.std())) if trained else 1.0
        embed, features = (embed * factor).to(dtype), (features * factor).to(dtype)
        exact = _official(embed.double(), features.double(), size)
        official += int((_official(embed, features, size) != exact).sum())
        pooled = resize_maps(upcast_half(features), size)
        ours += int((core_decoder.attention_mask(embed, pooled)[:, 0] != exact).sum())
        bits += exact.numel()
    return Flips(ours, official, bits)


def _official(embed: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a query may attend, as ``mask2former_transformer_decoder.py`` has it."""
    masks = torch.einsum('bqc,bchw->bqhw', embed, features)
    resized = F.interpolate(masks, size=size, mode='bilinear', align_corners=False)
    away = resized.sigmoid().flatten(2) < 0.5
    return ~away | away.all(-1, keepdim=True)
