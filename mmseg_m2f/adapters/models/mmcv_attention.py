"""Use mmcv's deformable attention: its CUDA operator as a back end, its module as a part."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_m2f.adapters.models.lazy import MissingOperatorsError
from mmseg_m2f.ops.backends import Backend, log_once
from mmseg_m2f.ops.ms_deform_attn import BACKENDS
from mmseg_m2f.ops.ms_deform_attn.reference import from_locations


def offer_mmcv_operator() -> None:
    """Register mmcv's operator as the first back end; it says by itself where it cannot run."""
    BACKENDS.register(Backend('mmcv', _run, _why_not))


def _why_not(value: Tensor, *_: Any) -> str | None:
    if value.device.type != 'cuda':
        return f'it needs CUDA tensors, got {value.device.type}'
    return _failure_on(value.device)


@functools.cache
def _failure_on(device: torch.device) -> str | None:
    """Return why the operator does not run on this GPU, or None: mmcv may be built for another."""
    value = torch.zeros(1, 1, 1, 1, device=device)
    locations = torch.zeros(1, 1, 1, 1, 1, 2, device=device)
    try:
        _operator().apply(value, *_levels(((1, 1),), device), locations, locations[..., 0], 1)
        torch.cuda.synchronize(device)
    except ImportError as error:
        return f'mmcv has no compiled operators here ({error})'
    except RuntimeError as error:
        return f'mmcv was not built for this GPU ({str(error).splitlines()[0]})'
    return None


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
    out = _operator().apply(
        value.to(exact).contiguous(),
        *_levels(tuple(level_shapes), value.device),
        sampling_locations.contiguous(),
        attention_weights.contiguous(),
        value.shape[0],  # im2col_step, which has to divide the batch: all of it at once
    )
    return out.to(value.dtype)


def _operator() -> Any:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    return MultiScaleDeformableAttnFunction


@functools.lru_cache(maxsize=256)
def _levels(
    level_shapes: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ``(L, 2)`` sizes and ``(L,)`` first tokens; cached: no step waits for a copy."""
    # A tensor made under inference mode could not be kept for a later backward pass.
    with torch.inference_mode(False):
        shapes = torch.tensor(level_shapes, device=device)
        areas = shapes.prod(dim=1)
        return shapes, areas.cumsum(0) - areas


def build_mmcv_attention(
    channels: int, num_heads: int, num_levels: int, num_points: int, **options: Any
) -> nn.Module:
    """Build mmcv's ``MultiScaleDeformableAttention``, called as `core.MSDeformAttn` is.

    The parameters have the same names. ``options`` are mmcv's (``im2col_step``, ``dropout``, ...);
    dropout is 0 unless given.
    """
    sizes = {'num_heads': num_heads, 'num_levels': num_levels, 'num_points': num_points}
    options = {'dropout': 0.0, 'batch_first': True, **sizes, **options}
    return _mmcv_attention_class()(embed_dims=channels, **options)


@functools.cache
def _mmcv_attention_class() -> type[nn.Module]:
    try:
        from mmcv.ops import MultiScaleDeformableAttention
    except ImportError as error:
        raise MissingOperatorsError('MultiScaleDeformableAttention', error) from error

    class MMCVDeformAttn(MultiScaleDeformableAttention):
        """mmcv's module with the call signature of ``core.MSDeformAttn``."""

        def forward(
            self,
            query: Tensor,
            value: Tensor,
            reference_points: Tensor,
            level_shapes: Sequence[tuple[int, int]],
        ) -> Tensor:
            shapes, starts = _levels(tuple(level_shapes), query.device)
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
