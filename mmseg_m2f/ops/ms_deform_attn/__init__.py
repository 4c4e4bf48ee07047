"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3): the contract."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mmseg_m2f.ops.backends import Backend, BackendTable
from mmseg_m2f.ops.ms_deform_attn import embedding_bag
from mmseg_m2f.ops.ms_deform_attn.reference import ms_deform_attn_reference

BACKENDS = BackendTable(
    'ms_deform_attn', Backend('reference', ms_deform_attn_reference, lambda *_: None)
)
BACKENDS.register(
    Backend('embedding_bag', embedding_bag.ms_deform_attn_embedding_bag, embedding_bag.why_not)
)


def ms_deform_attn(
    value: Float[Tensor, 'B S heads D'],
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Float[Tensor, 'B Q heads L P 2'],
    attention_weights: Float[Tensor, 'B Q heads L P'],
    backend: str = 'auto',
) -> Float[Tensor, 'B Q C']:
    """Sum of bilinear samples of ``value``, weighted by ``attention_weights``.

    Args:
        value: tokens of all levels one after the other, row by row; ``S`` is the sum of the areas.
        level_shapes: ``(height, width)`` of each level, in the order of ``value``.
        sampling_locations: ``(x, y)`` in units of the level's extent, ``align_corners=False``;
            points outside contribute zero. Kept in float32 even where ``value`` is a half type.
        attention_weights: weights of the ``L * P`` samples, normally a softmax over them.
        backend: ``'auto'`` or the name of a registered back end.

    Returns:
        ``(B, Q, heads * D)``, differentiable with respect to the three tensors. The backward pass
        of a CUDA back end may accumulate in an order that differs between runs.

    Raises:
        ValueError: ``level_shapes`` does not add up to ``S`` or has not ``L`` entries, or the back
            end cannot run.
    """
    num_levels = sampling_locations.shape[3]
    if len(level_shapes) != num_levels:
        raise ValueError(
            f'level_shapes {list(level_shapes)} has {len(level_shapes)} levels, '
            f'sampling_locations {num_levels}'
        )
    num_tokens = sum(height * width for height, width in level_shapes)
    if num_tokens != value.shape[1]:
        raise ValueError(
            f'level_shapes {list(level_shapes)} hold {num_tokens} tokens, value has '
            f'{value.shape[1]}'
        )
    args = (value, level_shapes, sampling_locations, attention_weights)
    return BACKENDS.choose(backend, *args).function(*args)
