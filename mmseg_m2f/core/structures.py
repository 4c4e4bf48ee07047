"""The values that pass between the stages, and the axis legend every signature of ``core`` uses.

    B  images          Q  queries             K  real classes (class index K is "no object")
    C  channels        N  targets of a image    M  matched pairs
    P  points          S  tokens              L  levels (of features) or decoder layers
    H W  padded input pixels, in post-processing those of the result    h w  stride 4

Sizes are ``(height, width)``; coordinates are ``(x, y)`` in ``[0, 1]`` with
``align_corners=False`` (0 and 1 are the outer borders of the first and last pixel).
A boolean attention mask says True where a query MAY attend.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmseg_m2f.cpu.linear import is_captured, linear


class PixelFeatures(NamedTuple):
    """What a pixel decoder returns: ``mask_features (B, C, h, w)`` and the decoder's memory.

    ``memory`` holds one map ``(B, C, h_l, w_l)`` per level, coarsest (stride 32) first.
    """

    mask_features: Tensor
    memory: tuple[Tensor, ...]


class PassedOn(list[Tensor]):
    """Maps that nobody needs after their receiver, which empties the list as soon as it has them.

    A image's maps are among the largest tensors of a network, and in Python a caller's arguments
    live until the call is over. Forward hooks of the receiver see the list empty.
    """


class MaskPrediction(NamedTuple):
    """One supervised prediction: ``class_logits (B, Q, K+1)`` and ``mask_embed (B, Q, C)``.

    Mask logits are the inner product of ``mask_embed`` with ``mask_features`` and are formed
    only where somebody needs them (``mask_logits``), never kept for every layer.
    """

    class_logits: Tensor
    mask_embed: Tensor


class MaskTarget(NamedTuple):
    """Ground truth of one image: ``labels (N,)`` int64 in [0, K) and ``masks (N, H, W)`` bool."""

    labels: Tensor
    masks: Tensor


class Match(NamedTuple):
    """Matched pairs of one image: query ``query_idx[m]`` explains target ``target_idx[m]``."""

    query_idx: Tensor
    target_idx: Tensor


class ImageGeometry(NamedTuple):
    """The sizes ``(height, width)`` a image has on its way.

    ``padded`` is the network's input, ``resized`` the image at its top left, ``original`` the
    file.
    """

    padded: tuple[int, int]
    resized: tuple[int, int]
    original: tuple[int, int]


def mask_logits(
    mask_embed: Float[Tensor, '*batch Q C'], mask_features: Float[Tensor, '*batch C h w']
) -> Float[Tensor, '*batch Q h w']:
    """Inner product over channels of query embeddings and pixel features (paper eq. 1's mask).

    Returns logits; their sigmoid is the probability that a pixel belongs to the query's segment.
    """
    pixels = mask_features.flatten(-2).transpose(-1, -2)  # (*batch, S, C)
    # A program that is captured is to serve any number of images.
    if pixels.shape[:-2].numel() == 1 and not is_captured():
        logits = linear(mask_embed, pixels.reshape(pixels.shape[-2:]), None)
    else:
        logits = mask_embed @ pixels.transpose(-1, -2)
    return logits.unflatten(-1, mask_features.shape[-2:])


def at_least_float32(x: Float[Tensor, '*shape']) -> Float[Tensor, '*shape']:
    """``x`` in float32, unless it is float64 already: half types lose the small differences."""
    return x if x.dtype == torch.float64 else x.float()


__all__ = [
    'ImageGeometry',
    'MaskPrediction',
    'MaskTarget',
    'Match',
    'PassedOn',
    'PixelFeatures',
    'at_least_float32',
    'mask_logits',
]
