"""Weights in the type that an autocast would cast them to at every picture."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mmseg_m2f import core
from mmseg_m2f.adapters.heads import MaskHead
from mmseg_m2f.adapters.trials import try_on_copy
from mmseg_m2f.checkpoints import HEADS
from mmseg_m2f.core.layers import Attention


def try_casting(model: Any, dtype: torch.dtype) -> None:
    """See that the model's backbone takes it.

    Raises:
        CannotPrepareError: it does not.
    """
    try_on_copy(
        model.backbone,
        lambda backbone: cast_products(backbone, dtype),
        f'cast to {dtype}',
        dtype,
        'it computes with its weights outside of products that an autocast casts them for',
        'Set cast_weights=False to leave the weights in float32.',
    )


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Of the backbone and of those of our parts that an autocast reaches, in place."""
    for part in (model.backbone, *_our_parts(model)):
        cast_products(part, dtype)


def cast_products(part: nn.Module, dtype: torch.dtype) -> None:
    """Cast what convolutions, linear layers and our attention multiply with, biases included.

    The parameters stay the same objects. Norms, embeddings and what has a type of its own
    (quantised, distributed) stay what they are.
    """
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | Attention):
            for value in module.parameters(recurse=False):
                if type(value) is nn.Parameter and value.dtype == torch.float32:
                    value.data = value.data.to(dtype)


def _our_parts(model: Any) -> Iterator[nn.Module]:
    """Our decoder and, where it is not in float32 whatever the autocast, our pixel decoder."""
    for head in (getattr(model, name, None) for name in HEADS):
        if not isinstance(head, MaskHead):
            continue
        if isinstance(head.decoder, core.MaskedAttentionDecoder):
            yield head.decoder
        pixel_decoder: Any = head.pixel_decoder
        is_ours = isinstance(pixel_decoder, core.MSDeformAttnPixelDecoder)
        if is_ours and pixel_decoder.config.mixed_precision:
            yield pixel_decoder
