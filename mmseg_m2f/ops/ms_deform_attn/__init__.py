"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3): the contract."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mmseg_m2f.ops.backends import Backend, BackendTable
from mmseg_m2f.ops.ms_deform_attn import compiled, triton
from mmseg_m2f.ops.ms_deform_attn.reference import ms_deform_attn_reference

BACKENDS = BackendTable(
    'ms_deform_attn', Backend('reference', ms_deform_attn_reference, lambda *_: None)
)
# Never run on a GPU: it runs only where it is named.
BACKENDS.register(Backend('triton', triton.ms_deform_attn_triton, triton.why_not, automatic=False))
BACKENDS.register(Backend('compiled', compiled.ms_deform_attn_compiled, compiled.why_not))


def ms_deform_attn(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Float[Tensor, 'Q 2'],
    offsets: Float[Tensor, 'B Q heads L P 2'],
    logits: Float[Tensor, 'B Q heads L P'],
    backend: str = 'auto',
) -> Float[Tensor, 'B Q C']:
    """Sum bilinear samples of ``value``, weighted by the softmax of ``logits``.

    The operator takes the outputs of the linear layers. So a back end can compute the softmax and
    the locations itself, and neither has to exist as a tensor.

    Args:
        value: tokens of all levels, one level after the other, row by row. ``S`` is their number.
        level_shapes: ``(height, width)`` of each level, in the order of ``value``.
        reference_points: ``(x, y)`` of each query in [0, 1], ``align_corners=False``; the same for
            all levels, heads and images. No gradient.
        offsets: ``(x, y)`` from the reference point to each sample, in pixels of the sample's
            level. Outside a map the value is 0. Half types are converted to float32 first.
        logits: the softmax over the ``L * P`` samples of a head gives their weights.
        backend: ``'auto'`` or the name of a registered back end.

    Returns:
        ``(B, Q, heads * D)`` of the dtype of ``value``, differentiable with respect to ``value``,
        ``offsets`` and ``logits``. Locations, weights and sums are computed in float32 (float64 for
        a float64 ``value``). The backward pass of a CUDA back end may add in an order that differs
        between runs.

    Raises:
        ValueError: the shapes do not fit together, ``level_shapes`` does not have ``L`` entries
            that add up to ``S`` tokens, or the named back end cannot run.
    """
    args = (value, level_shapes, reference_points, offsets, logits)
    check_shapes(*args)
    return BACKENDS.choose(backend, *args).function(*args)


def check_shapes(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> None:
    """Raise ValueError unless the shapes fit together; a compiled kernel does not check them."""
    batch, _, num_heads, _ = value.shape
    num_queries, num_levels = offsets.shape[1], offsets.shape[3]
    fitting = (batch, num_queries, num_heads, num_levels, offsets.shape[4])
    if (
        logits.shape != fitting
        or offsets.shape != (*fitting, 2)
        or reference_points.shape != (num_queries, 2)
    ):
        raise ValueError(
            'value (B, S, heads, D), reference_points (Q, 2), offsets (B, Q, heads, L, P, 2) and '
            f'logits (B, Q, heads, L, P) do not fit together, got {tuple(value.shape)}, '
            f'{tuple(reference_points.shape)}, {tuple(offsets.shape)}, {tuple(logits.shape)}'
        )
    if len(level_shapes) != num_levels:
        raise ValueError(
            f'level_shapes {list(level_shapes)} has {len(level_shapes)} levels, '
            f'offsets {num_levels}'
        )
    num_tokens = sum(height * width for height, width in level_shapes)
    if num_tokens != value.shape[1]:
        raise ValueError(
            f'level_shapes {list(level_shapes)} hold {num_tokens} tokens, value has '
            f'{value.shape[1]}'
        )
