"""The values that pass between the stages, and the axis legend every signature of ``core`` uses.

    B  images          Q  queries               K  real classes (class index K is "no object")
    C  channels        N  targets of an image   M  matched pairs
    P  points          S  tokens                L  levels of features
    T  predictions: one per decoder layer, and one of the learned queries before them
    H W  pixels of the padded input; in post-processing, of the result       h w  at stride 4

Sizes are ``(height, width)``; coordinates are ``(x, y)`` in ``[0, 1]`` with
``align_corners=False`` (0 and 1 are the outer borders of the first and last pixel).
A boolean attention mask says True where a query MAY attend.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class PixelFeatures(NamedTuple):
    """The pixel decoder's result: ``mask_features (B, C, h, w)`` and the decoder's memory.

    ``memory`` holds one map ``(B, C, h_l, w_l)`` per level, coarsest (stride 32) first.
    """

    mask_features: Tensor
    memory: tuple[Tensor, ...]


class MaskPrediction(NamedTuple):
    """One supervised prediction: ``class_logits (B, Q, K+1)`` and ``mask_embed (B, Q, C)``.

    Mask logits are the inner product of ``mask_embed`` with ``mask_features``. They are formed only
    where they are needed (``mask_logits``), never kept for every layer.
    """

    class_logits: Tensor
    mask_embed: Tensor


class MaskTarget(NamedTuple):
    """Ground truth of one image: ``labels (N,)`` int64 in [0, K) and ``masks (N, H, W)`` bool."""

    labels: Tensor
    masks: Tensor


class Match(NamedTuple):
    """Matched pairs of one image: two int64 tensors ``(T, M)``.

    In prediction ``t``, query ``query_idx[t, m]`` is matched with target ``target_idx[t, m]``.
    """

    query_idx: Tensor
    target_idx: Tensor


class ImageGeometry(NamedTuple):
    """The three sizes ``(height, width)`` of one image.

    ``padded`` is the network's input, ``resized`` the image at its top left, ``original`` the
    file.
    """

    padded: tuple[int, int]
    resized: tuple[int, int]
    original: tuple[int, int]


def mask_logits(
    mask_embed: Float[Tensor, '*batch Q C'], mask_features: Float[Tensor, '*batch C h w']
) -> Float[Tensor, '*batch Q h w']:
    """Compute mask logits: inner products of query embeddings and pixel features (paper eq. 1).

    Their sigmoid is the probability that a pixel belongs to the query's segment.
    """
    return torch.einsum('...qc,...chw->...qhw', mask_embed, mask_features)


def upcast_half(x: Float[Tensor, '*shape']) -> Float[Tensor, '*shape']:
    """Convert half types to float32, since they lose small differences; keep float32, float64."""
    return x if x.dtype == torch.float64 else x.float()
