"""The table of faster forwards, and the two functions that put them in place and take them back."""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from mmseg_m2f.core.deform_attn import MSDeformAttn
from mmseg_m2f.core.layers import ConvNorm, FeedForward
from mmseg_m2f.cpu import head, onednn, resnet, swin

Forward = Callable[..., Any]

# Behind each entry: the time without it as a multiple of the time with all entries. Process time of
# one thread of an AMD EPYC (Zen 5) with AVX-512: images of a panoptic R50 model (800 x 1333) and a
# semantic Swin-L one (640), training steps of a semantic R50 one (two images of 512).
HEAD: dict[type, Forward] = {
    FeedForward: head.feed_forward,  # image 1.30, step 1.18
    MSDeformAttn: head.deformable_attention,  # image 1.11, step 1.05
    ConvNorm: head.conv_norm,  # image 1.06, step 1.09; with AVX2 code step 1.27
}
# Classes of both mmseg and mmdet, by their place in ``models.backbones``.
BACKBONES: dict[str, Forward] = {
    'resnet.BasicBlock': resnet.block,  # the same forward as Bottleneck
    'resnet.Bottleneck': resnet.block,  # image 1.15, step 1.18
    'swin.SwinBlock': swin.block,  # image 1.25
    'swin.WindowMSA': swin.window_attention,  # image 1.30
}


def speed_up(model: nn.Module) -> nn.Module:
    """Give every known part of a built model its faster forward, in place.

    Modules, parameters and their names stay what they are, and so do the results, up to rounding.
    Each part decides at every call whether it runs as its class does: on another device, in another
    type, with hooks inside, captured by a compiler. A second call changes nothing. A part with a
    ``forward`` of its own keeps it.

    Returns:
        ``model`` itself.
    """
    if onednn.failure() is None:
        forwards = _forwards()
        for module in model.modules():
            forward = forwards.get(type(module))
            if forward is not None and 'forward' not in vars(module):
                module.forward = functools.partial(forward, module)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Take back what ``speed_up`` did to a model, or to the model that it was copied from.

    Returns:
        ``model`` itself.
    """
    ours = {*HEAD.values(), *BACKBONES.values()}
    for module in model.modules():
        forward = vars(module).get('forward')
        if isinstance(forward, functools.partial) and forward.func in ours:
            del module.forward
    return model


def _forwards() -> dict[type, Forward]:
    """Return the table by classes; packages that are not imported cannot be in a model."""
    forwards = dict(HEAD)
    for package in ('mmseg', 'mmdet'):
        if f'{package}.models' not in sys.modules:
            continue
        for place, forward in BACKBONES.items():
            module, name = place.split('.')
            library = importlib.import_module(f'{package}.models.backbones.{module}')
            forwards[getattr(library, name)] = forward
    return forwards
