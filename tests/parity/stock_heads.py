"""Tools to compare with mmseg, mmdet and Hugging Face: models, logits, masks, positions, bounds."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from mmseg_m2f import core
from mmseg_m2f.core import decoder as core_decoder
from tests.checkpoints import published_names as published

# Rounding adds up over some hundred layers. Shares of the range of what is compared.
FLOAT32 = 100 * torch.finfo(torch.float32).eps
# With room for the first layers' errors, which later norms may enlarge.
FLOAT64 = 1e4 * torch.finfo(torch.float64).eps


class Logits(NamedTuple):
    """Logits of all predictions: ``classes (L+1, B, Q, K+1)`` and ``masks (L+1, B, Q, h, w)``."""

    classes: Tensor
    masks: Tensor


@torch.no_grad()
def our_logits(head: Any, maps: list[Tensor]) -> Logits:
    features = head.pixel_decoder(maps)
    predictions = head.decoder(features)
    masks = [core.mask_logits(p.mask_embed, features.mask_features) for p in predictions]
    return Logits(torch.stack([p.class_logits for p in predictions]), torch.stack(masks))


@torch.no_grad()
def stock_logits(head: Any, maps: list[Tensor]) -> tuple[Logits, list[Tensor]]:
    """Return the logits, and for each layer where it may attend: ``(B, 1, Q, S)``."""
    may_attend: list[Tensor] = []
    forward_head = head._forward_head

    def note_mask(*args: Any, **kwargs: Any) -> Any:
        output = forward_head(*args, **kwargs)
        may_attend.append(opened(output[2], head.num_heads))
        return output

    samples = [SimpleNamespace(metainfo={}) for _ in maps[0]]
    with mock.patch.object(head, '_forward_head', note_mask):
        logits = Logits(*map(torch.stack, head(maps, samples)))
    return logits, may_attend


def opened(blocked: Tensor, num_heads: int) -> Tensor:
    """Where a query may attend: everywhere if all is blocked. ``(B, 1, Q, S)``."""
    blocked = blocked.unflatten(0, (-1, num_heads))[:, :1]
    return ~blocked | blocked.all(-1, keepdim=True)


@contextmanager
def attending(may_attend: list[Tensor], *, inject: bool = True) -> Iterator[list[float]]:
    """Give our decoder these masks, since a logit at the threshold may fall to either side.

    Yields the share of each mask in which our own differs. Without ``inject`` our own are used.
    """
    masks, own_mask, differing = iter(may_attend), core_decoder.attention_mask, []

    def given(*args: Tensor) -> Tensor:
        mask, own = next(masks), own_mask(*args)
        differing.append((own != mask).float().mean().item())
        return mask if inject else own

    with mock.patch.object(core_decoder, 'attention_mask', given):
        yield differing


def error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, as a share of the range of what is compared."""
    assert ours.shape == theirs.shape
    extent = theirs.max() - theirs.min()
    # The comparison means something: logits are of order one and of both signs.
    assert extent > 1
    assert theirs.min() < 0 < theirs.max()
    return ((ours - theirs).abs().max() / extent).item()


def segments(encoded: Tensor) -> set[tuple[int, bool, bytes]]:
    """Return class, is thing and pixels of each: mmdet's numbers of things may have gaps."""
    return {
        (value % 1000, value >= 1000, (encoded == value).numpy().tobytes())
        for value in encoded.unique().tolist()
    }


@contextmanager
def float64_positions() -> Iterator[None]:
    """Let mmdet compute in float64 what it has in float32 in models of float64, too.

    These are the encoded positions and the centers of pixels. Their rounding moves a value to the
    other side of a ReLU's or a bilinear sample's kink, which changes gradients by up to 1e-3.
    """
    from mmdet.models.layers import positional_encoding
    from mmdet.models.task_modules.prior_generators import MlvlPointGenerator

    torch_of_float64 = SimpleNamespace(**{**vars(torch), 'float32': torch.float64})
    centers = MlvlPointGenerator.single_level_grid_priors

    def exact(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return centers(self, *args, **{**kwargs, 'dtype': torch.float64})

    with (
        mock.patch.object(positional_encoding, 'torch', torch_of_float64),
        mock.patch.object(MlvlPointGenerator, 'single_level_grid_priors', exact),
    ):
        yield


def huggingface_config(backbone: str, **settings: Any) -> Any:
    """Settings of Hugging Face's model with the backbones and sizes of the published names."""
    import transformers

    outputs = {'out_features': ['stage1', 'stage2', 'stage3', 'stage4']}
    if backbone == 'r50':
        encoder = transformers.ResNetConfig(**outputs)
    else:
        encoder = transformers.SwinConfig(
            embed_dim=published.SWIN_T_CHANNELS[0],
            depths=list(published.SWIN_T_DEPTHS),
            num_heads=list(published.SWIN_T_HEADS),
            # The eager attention computes its softmax in float32 even for float64 input.
            attn_implementation='sdpa',
            **outputs,
        )
    return transformers.Mask2FormerConfig(
        backbone_config=encoder,
        num_labels=published.NUM_CLASSES,
        # It counts the prediction on the learnt queries: 10 means 9 layers (H11).
        decoder_layers=published.NUM_DECODER_LAYERS + 1,
        **settings,
    )
