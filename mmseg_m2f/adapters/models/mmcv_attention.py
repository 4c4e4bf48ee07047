"""Use mmcv's deformable attention: its CUDA operator as a back end, its module as a part."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_m2f.adapters.models.missing import MissingOperatorsError
from mmseg_m2f.ops.backends import Backend, log_once
from mmseg_m2f.ops.ms_deform_attn import BACKENDS
from mmseg_m2f.ops.ms_deform_attn.reference import from_locations

MMCV_ATTENTION = 'MultiScaleDeformableAttention'


@functools.cache
def _failure_on(device: torch.device) -> str | None:
    """Return why the operator does not run on this GPU, or None: mmcv may be built for another."""
    value = torch.zeros(1, 1, 1, 1, device=device)
    shapes, starts = _shape_tensors(((1, 1),), device)
    locations = torch.zeros(1, 1, 1, 1, 1, 2, device=device)
    try:
        _operator().apply(value, shapes, starts, locations, locations[..., 0], 1)
        torch.cuda.synchronize(device)
    except ImportError as error:
        return f'mmcv has no compiled operators here ({error})'
    except RuntimeError as error:
        return f'mmcv was not built for this GPU ({str(error).splitlines()[0]})'
    return None


def _operator() -> Any:
    """Import mmcv's autograd function."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    return MultiScaleDeformableAttnFunction


def _why_not(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> str | None:
    if value.device.type != 'cuda':
        return f'it needs CUDA tensors, got {value.device.type}'
    return _failure_on(value.device)


@from_locations
def _run(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Call mmcv's operator; half types are computed in float32.

    In a half type mmcv would round the locations, too: by up to a quarter of a pixel.
    """
    exact = sampling_locations.dtype
    if value.dtype != exact:
        log_once(f"mmcv's deformable attention computes {value.dtype} in {exact}")
    shapes, starts = _shape_tensors(tuple(level_shapes), value.device)
    # im2col_step splits the batch; the whole batch at once is always a divisor of itself.
    out = _operator().apply(
        value.to(exact).contiguous(),
        shapes,
        starts,
        sampling_locations.contiguous(),
        attention_weights.contiguous(),
        value.shape[0],
    )
    return out.to(value.dtype)


@functools.lru_cache(maxsize=256)
def _shape_tensors(
    level_shapes: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ``(L, 2)`` sizes and ``(L,)`` first tokens; cached: no step waits for a copy."""
    # A tensor made under inference mode could not be kept for a later backward pass.
    with torch.inference_mode(False):
        shapes = torch.tensor(level_shapes, device=device)
        areas = shapes.prod(dim=1)
        return shapes, areas.cumsum(0) - areas


def offer_mmcv_operator() -> None:
    """Register mmcv's operator as the first back end; it says by itself where it cannot run."""
    BACKENDS.register(Backend('mmcv', _run, _why_not))


def is_mmcv_attention(type_name: object) -> bool:
    """Return True for the name of mmcv's module, with or without a scope."""
    return isinstance(type_name, str) and type_name.rpartition('.')[2] == MMCV_ATTENTION


@functools.cache
def _mmcv_attention_class() -> type[nn.Module]:
    try:
        from mmcv.ops import MultiScaleDeformableAttention
    except ImportError as error:
        raise MissingOperatorsError(MMCV_ATTENTION, error) from error

    class MMCVDeformAttn(MultiScaleDeformableAttention):
        """mmcv's module with the call signature of ``core.MSDeformAttn``."""

        def forward(
            self,
            query: Tensor,
            value: Tensor,
            reference_points: Tensor,
            level_shapes: Sequence[tuple[int, int]],
        ) -> Tensor:
            shapes, starts = _shape_tensors(tuple(level_shapes), query.device)
            points = reference_points[None, :, None].expand(len(query), -1, len(shapes), -1)
            return super().forward(
                query,
                value=value,
                identity=query.new_zeros(()),  # the residual belongs to our encoder layer
                reference_points=points,
                spatial_shapes=shapes,
                level_start_index=starts,
            )

    return MMCVDeformAttn


def build_mmcv_attention(
    channels: int, num_heads: int, num_levels: int, num_points: int, **options: Any
) -> nn.Module:
    """Build mmcv's ``MultiScaleDeformableAttention``, called as `core.MSDeformAttn` is.

    The parameters have the same names. ``options`` are mmcv's (``im2col_step``, ``dropout``, ...);
    dropout is 0 unless given.

    Raises:
        MissingOperatorsError: mmcv has no compiled operators.
    """
    return _mmcv_attention_class()(
        embed_dims=channels,
        num_heads=num_heads,
        num_levels=num_levels,
        num_points=num_points,
        batch_first=True,
        **{'dropout': 0.0, **options},
    )
