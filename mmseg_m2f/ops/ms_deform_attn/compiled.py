"""The back end for CPUs, forward and backward: ``compiled.cpp``.

The source is compiled on first use, for the processor of this machine, and kept in the user's cache
(``$XDG_CACHE_HOME/mmseg_m2f``, by default ``~/.cache/mmseg_m2f``). It has a C interface and needs
no header of PyTorch, so that compiling takes seconds and not a minute.
"""

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmseg_m2f.ops.backends import constant_when_compiled
from mmseg_m2f.ops.native import Library

LIBRARY = Library('ms_deform_attn', __file__)

# For each dtype of the value: the dtype of the computation, and the compiled function's name.
_FUNCTIONS = {
    torch.float32: (torch.float32, 'float32'),
    torch.float64: (torch.float64, 'float64'),
    torch.bfloat16: (torch.float32, 'bfloat16'),
}


def why_not(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> str | None:
    """Return why the back end cannot run, or None.

    It runs on a CPU with a C++ compiler, in float32, float64 and bfloat16.
    """
    if value.device.type != 'cpu':
        return f'it is made for the CPU, got {value.device.type}'
    if value.dtype not in _FUNCTIONS:
        return f'it is made for float32, float64 and bfloat16, got {value.dtype}'
    if reference_points.requires_grad:
        return 'it has no gradient for the reference points'
    return _missing()


@constant_when_compiled
def _missing() -> str | None:
    """Return why there is no library, or None; a graph of ``torch.compile`` keeps the answer."""
    return LIBRARY.why_not()


def ms_deform_attn_compiled(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Float[Tensor, 'Q 2'],
    offsets: Float[Tensor, 'B Q heads L P 2'],
    logits: Float[Tensor, 'B Q heads L P'],
) -> Float[Tensor, 'B Q C']:
    """Compute ``ops.ms_deform_attn``. The backward pass gives the same bits in every run."""
    sides = [side for shape in level_shapes for side in shape]
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        sides = [int(side) for side in sides]  # in a trace they are tensors
    return _forward(value, sides, reference_points, offsets, logits)


@torch.library.custom_op('mmseg_m2f::ms_deform_attn_cpu', mutates_args=(), device_types='cpu')
def _forward(
    value: Tensor, sides: list[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    inputs, name = _prepared(value, reference_points, offsets, logits)
    out = value.new_empty(len(value), offsets.shape[1], value.shape[2] * value.shape[3])
    _call(f'forward_{name}', sides, inputs, [out])
    return out


@_forward.register_fake
def _(
    value: Tensor, sides: list[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    return value.new_empty(len(value), offsets.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op(
    'mmseg_m2f::ms_deform_attn_cpu_backward', mutates_args=(), device_types='cpu'
)
def _backward(
    grad_out: Tensor,
    value: Tensor,
    sides: list[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs, name = _prepared(value, reference_points, offsets, logits)
    compute_dtype = inputs[1].dtype
    grads = [torch.empty_like(x, dtype=compute_dtype) for x in (inputs[0], inputs[2], inputs[3])]
    _call(f'backward_{name}', sides, [*inputs, grad_out.to(compute_dtype).contiguous()], grads)
    wanted = (value, offsets, logits)
    grad_value, grad_offsets, grad_logits = (
        grad.to(x.dtype) for grad, x in zip(grads, wanted, strict=True)
    )
    return grad_value, grad_offsets, grad_logits


@_backward.register_fake
def _(
    grad_out: Tensor,
    value: Tensor,
    sides: list[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    grad_value, grad_offsets, grad_logits = (
        torch.empty_like(x, memory_format=contiguous) for x in (value, offsets, logits)
    )
    return grad_value, grad_offsets, grad_logits


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    value, ctx.sides, *rest = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(value, *rest)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad_out: Tensor
) -> tuple[Tensor, None, None, Tensor, Tensor]:
    value, *rest = ctx.saved_tensors  # type: ignore[attr-defined]
    grads = _backward(grad_out, value, ctx.sides, *rest)  # type: ignore[attr-defined]
    return grads[0], None, None, grads[1], grads[2]


_forward.register_autograd(_differentiate, setup_context=_keep)


def _prepared(
    value: Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[list[Tensor], str]:
    """Make the inputs contiguous, all but the value in the dtype of the computation.

    Returns them and the name of the compiled function.
    """
    compute_dtype, name = _FUNCTIONS[value.dtype]
    others = [x.to(compute_dtype).contiguous() for x in (reference_points, offsets, logits)]
    return [value.contiguous(), *others], name


def _call(function: str, sides: list[int], inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Call a function of the library. The first inputs are value, reference points and offsets."""
    value, offsets = inputs[0], inputs[2]
    batch, tokens, heads, head_dim = value.shape
    queries, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    sizes = (batch, tokens, queries, heads, levels, points, head_dim)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*inputs, *outputs)]
    getattr(LIBRARY.loaded(), function)(
        (ctypes.c_int64 * len(sizes))(*sizes),
        (ctypes.c_int64 * len(sides))(*sides),
        *pointers,
        torch.get_num_threads(),
    )
