"""A back end for NVIDIA GPUs: one fused Triton kernel forward and one backward.

It has never run on a GPU, so that it runs only where it is named. It is tested in Triton's
interpreter.

The kernels compute softmax and positions, which are never stored. The forward pass keeps its inputs
for the backward pass and nothing else. No size is copied to the GPU as a tensor: no call waits for
the device. Atomic additions in float32 sum the gradient of ``value``, in an order that differs
between runs; the other gradients are the same in every run.
"""

import importlib.metadata
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

OLDEST = (3, 6)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (8, 16, 32, 64, 128)
MAX_SAMPLES = 64


def _missing() -> str | None:
    """Return why Triton cannot be imported here, or None."""
    if find_spec('triton') is None:
        return 'Triton is not installed (pip install triton; Linux only)'
    try:
        version = importlib.metadata.version('triton')
    except importlib.metadata.PackageNotFoundError:
        return None  # PyTorch's nightly builds of it go by other names.
    if tuple(int(number) for number in version.split('.')[:2]) < OLDEST:
        return f'it needs Triton 3.6 or newer, got {version}'
    return None


# Computed at import: ``torch.compile`` cannot trace the function.
_MISSING = _missing()


def why_not(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> str | None:
    """Return why the back end cannot run, or None.

    It runs on NVIDIA GPUs since Ampere, in float32 and half types.
    """
    if value.device.type != 'cuda' or torch.version.hip is not None:
        return f'it is made for NVIDIA GPUs, got {value.device.type}'
    if _MISSING is not None:
        return _MISSING
    if torch.cuda.get_device_properties(value.device).major < 8:
        return 'it needs a GPU of compute capability 8.0 (Ampere) or newer'
    return _misfit(value, reference_points, offsets, logits)


def _misfit(value: Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> str | None:
    """Return why the kernels cannot take these dtypes and shapes, or None."""
    for tensor in (value, reference_points, offsets, logits):
        if tensor.dtype not in DTYPES:
            return f'it takes float32, float16 and bfloat16, got {tensor.dtype}'
    _, num_tokens, num_heads, head_dim = value.shape
    if head_dim not in HEAD_DIMS:
        return f'it takes heads of 8, 16, 32, 64 or 128 channels, got {head_dim}'
    num_samples = logits.shape[3] * logits.shape[4]
    if num_samples > MAX_SAMPLES:
        return f'it takes up to {MAX_SAMPLES} samples per query and head, got {num_samples}'
    # Pixels of one image are counted in 32 bits, everything else in 64.
    if num_tokens * num_heads * head_dim >= 2**31:
        return (
            f'it takes fewer than 2^31 numbers per image, got {num_tokens * num_heads * head_dim}'
        )
    return None


def ms_deform_attn_triton(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Float[Tensor, 'Q 2'],
    offsets: Float[Tensor, 'B Q heads L P 2'],
    logits: Float[Tensor, 'B Q heads L P'],
) -> Float[Tensor, 'B Q heads*D']:
    """Compute ``ops.ms_deform_attn``."""
    sizes = [size for shape in level_shapes for size in shape]
    return forward_op(value, sizes, reference_points, offsets, logits)


@torch.library.custom_op('mmseg_m2f::ms_deform_attn_triton', mutates_args=())
def forward_op(
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Run the operator as one node of a graph; ``sizes`` are height and width of each level."""
    if offsets.numel() == 0:
        return forward_fake(value, sizes, reference_points, offsets, logits).zero_()
    from mmseg_m2f.ops.ms_deform_attn.triton_launch import launch_forward

    return launch_forward(value, sizes, reference_points, offsets, logits)


@forward_op.register_fake
def forward_fake(
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Return an empty output of the right shape."""
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op('mmseg_m2f::ms_deform_attn_triton_backward', mutates_args=())
def backward_op(
    grad_out: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, offsets and logits."""
    if offsets.numel() == 0:
        grads = backward_fake(grad_out, value, sizes, reference_points, offsets, logits)
        return grads[0].zero_(), grads[1], grads[2]
    from mmseg_m2f.ops.ms_deform_attn.triton_launch import launch_backward

    return launch_backward(grad_out, value, sizes, reference_points, offsets, logits)


@backward_op.register_fake
def backward_fake(
    grad_out: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty gradients of the right shapes."""
    return (
        value.new_empty(value.shape),
        offsets.new_empty(offsets.shape),
        logits.new_empty(logits.shape),
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sizes, reference_points, offsets, logits = inputs
    ctx.save_for_backward(value, reference_points, offsets, logits)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, reference_points, offsets, logits = ctx.saved_tensors
    grads = backward_op(grad_out, value, ctx.sizes, reference_points, offsets, logits)
    return grads[0], None, None, grads[1], grads[2]


forward_op.register_autograd(_backward, setup_context=_save_inputs)
