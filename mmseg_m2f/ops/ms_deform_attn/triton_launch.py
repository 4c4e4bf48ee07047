"""Launch the Triton kernels; imported when first used, as Triton is optional."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from mmseg_m2f.ops.ms_deform_attn.triton_kernels import backward_kernel, forward_kernel

NUM_WARPS = 4
VECTOR_BYTES = 16
# Named here, as Triton 3.9 warns that a default will change.
OPTIONS = {'num_warps': NUM_WARPS, 'enable_fp_fusion': True}


def launch_forward(
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Run the forward kernel; ``sizes`` are height and width of each level in one list."""
    batch, num_tokens, num_heads, head_dim = value.shape
    num_queries, constants = offsets.shape[1], _constants(value, offsets, VECTOR_BYTES)
    offset_rows, logit_rows = _rows(offsets), _rows(logits)
    out = value.new_empty(batch, num_queries, num_heads * head_dim)
    with torch.cuda.device_of(value):
        forward_kernel[_grid(batch, num_queries, constants)](
            value.contiguous(),
            reference_points.contiguous(),
            offset_rows,
            logit_rows,
            out,
            tuple(map(float, sizes)),
            num_queries,
            num_tokens,
            offset_rows.stride(0),
            logit_rows.stride(0),
            **constants,
            **OPTIONS,
        )
    return out


def launch_backward(
    grad_out: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward kernel; the gradient of ``value`` is summed in float32, then rounded.

    Returns the gradients of value, offsets and logits.
    """
    num_queries = offsets.shape[1]
    # Atomic additions take vectors of 4 channels for every dtype of value.
    constants = _constants(value, offsets, 4 * value.element_size())
    offset_rows, logit_rows = _rows(offsets), _rows(logits)
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_offsets, grad_logits = offsets.new_empty(offsets.shape), logits.new_empty(logits.shape)
    with torch.cuda.device_of(value):
        backward_kernel[_grid(value.shape[0], num_queries, constants)](
            grad_out.contiguous(),
            value.contiguous(),
            reference_points.contiguous(),
            offset_rows,
            logit_rows,
            grad_value,
            grad_offsets,
            grad_logits,
            tuple(map(float, sizes)),
            num_queries,
            value.shape[1],
            offset_rows.stride(0),
            logit_rows.stride(0),
            **constants,
            **OPTIONS,
        )
    return grad_value.to(value.dtype), grad_offsets, grad_logits


def block_shape(head_dim: int, num_levels: int, num_points: int, vector: int) -> dict[str, int]:
    """Choose the columns of a program's tiles and its number of queries.

    Each thread has one vector of channels. A tile has 4 columns for each thread of a query, and
    more only where the samples need more. In that layout a thread knows what its columns hold.
    """
    threads = max(1, head_dim // vector)
    needed = triton.next_power_of_2(max(2, num_levels) * num_points)
    return {'columns': max(4 * threads, needed), 'block': max(1, 32 * NUM_WARPS // threads)}


def _constants(value: Tensor, offsets: Tensor, vector_bytes: int) -> dict[str, int]:
    """Return the numbers that are compiled into a kernel."""
    _, _, num_heads, num_levels, num_points, _ = offsets.shape
    head_dim = value.shape[3]
    return {
        'num_heads': num_heads,
        'head_dim': head_dim,
        'num_levels': num_levels,
        'num_points': num_points,
        **block_shape(head_dim, num_levels, num_points, vector_bytes // value.element_size()),
    }


def _grid(batch: int, num_queries: int, constants: dict[str, int]) -> tuple[int]:
    return (batch * triton.cdiv(num_queries, constants['block']) * constants['num_heads'],)


def _rows(samples: Tensor) -> Tensor:
    """View as ``(B Q, numbers of a query)``; a slice of a wider linear output is not copied."""
    rows = samples.flatten(2).flatten(0, 1)
    return rows if rows.stride(1) == 1 else rows.contiguous()
