"""Weights in the type that an autocast would cast them to at every image."""

from typing import Any

import torch
from torch import Tensor, nn

from mmseg_m2f import core
from mmseg_m2f.adapters.inference.trials import TOLERANCE, CannotPrepareError, Trial, try_on_copy
from mmseg_m2f.adapters.models.head import MaskHead
from mmseg_m2f.checkpoints import HEADS
from mmseg_m2f.core.layers import Attention

# By class, the parameters that only products read, all of which an autocast casts.
_CAST = {
    (nn.Conv2d, nn.ConvTranspose2d, nn.Linear): ('weight', 'bias'),
    (nn.MultiheadAttention, Attention): ('in_proj_weight', 'in_proj_bias'),
}
_MARK = '_weights_were_cast_to'


def check_casting(
    model: nn.Module, cast: bool, dtype: torch.dtype | None, *, fuses: bool
) -> torch.dtype | None:
    """What to cast the weights to; ``fuses``: norms would be fused, too.

    Raises:
        CannotPrepareError: no type, or the weights were cast before and what is asked for would
            need them as they were.
    """
    if cast and dtype is None:
        raise CannotPrepareError(
            'prepare_inference: cast_weights=True wants to know what to cast to: '
            "dtype='bfloat16', or 'float16' on an accelerator"
        )
    before = vars(model).get(_MARK)
    if before is not None and (dtype != before or fuses):
        asked = 'fuse_norms=True' if dtype == before else f'dtype={dtype}'
        raise CannotPrepareError(
            f'prepare_inference: the weights were cast to {before} before, and {asked} would start '
            'from those in float32: load them into a new model'
        )
    return dtype if cast else None


def try_casting(model: Any, dtype: torch.dtype) -> None:
    """See that a copy of the network, cast, gives the same numbers.

    Raises:
        CannotPrepareError: it does not.
    """
    try_on_copy(
        _network(model),
        lambda network: network.cast(dtype),
        Trial(
            name=type(model).__name__,
            done=f'cast to {dtype}',
            why='not all weights are read by products alone, which an autocast casts them for',
            way_out='Set cast_weights=False to leave the weights in float32.',
            dtype=dtype,
            # An accelerator may take the same sum in another order.
            tolerance=0.0 if next(model.parameters()).device.type == 'cpu' else TOLERANCE,
        ),
    )


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Of the backbone and of what of our head an autocast reaches, in place."""
    _network(model).cast(dtype)
    setattr(model, _MARK, dtype)


class _Network(nn.Module):
    """From the image to the logits of our head or, of another head, to the backbone's maps."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, head: MaskHead | None) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head

    def forward(self, images: Tensor) -> Any:
        """``images`` have the shape ``(B, channels, height, width)``."""
        maps = self.backbone(images)
        if self.head is None:
            return maps
        return self.head(maps if self.neck is None else self.neck(maps))

    def cast(self, dtype: torch.dtype) -> None:
        """All but what our head computes in float32 whatever the autocast."""
        _cast_products(self.backbone, dtype)
        if self.head is not None:
            _cast_products(self.head.decoder, dtype)
            pixel_decoder: Any = self.head.pixel_decoder
            if pixel_decoder.config.mixed_precision:
                _cast_products(pixel_decoder, dtype)


def _network(model: Any) -> _Network:
    return _Network(model.backbone, getattr(model, 'neck', None), _our_head(model))


def _our_head(model: Any) -> MaskHead | None:
    """With both of our decoders in it."""
    for head in (getattr(model, name, None) for name in HEADS):
        if isinstance(head, MaskHead):
            kinds = (core.MSDeformAttnPixelDecoder, core.MaskedAttentionDecoder)
            parts = (head.pixel_decoder, head.decoder)
            return head if all(map(isinstance, parts, kinds)) else None
    return None


def _cast_products(part: nn.Module, dtype: torch.dtype) -> None:
    """The parameters stay the same objects.

    What has a type of its own (quantised, distributed) stays what it is.
    """
    for module in part.modules():
        for kinds, names in _CAST.items():
            if isinstance(module, kinds):
                for value in (module._parameters.get(name) for name in names):
                    if type(value) is nn.Parameter and value.dtype == torch.float32:
                        value.data = value.data.to(dtype)
