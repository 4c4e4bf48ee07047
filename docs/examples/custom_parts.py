"""A mask loss, a match cost and a pixel decoder of your own.

A config uses them by type. This folder must be on PYTHONPATH, so that Python finds the module:

    _base_ = 'mask2former_r50_ade20k.py'
    custom_imports = dict(imports=['mmseg_m2f.adapters', 'custom_parts'])
    model = dict(
        decode_head=dict(
            pixel_decoder=dict(_delete_=True, type='TopDownPixelDecoder'),
            matcher=dict(costs=dict(mask=dict(type='L1MaskCost'))),
            losses=dict(mask=dict(_delete_=True, type='L1MaskLoss')),
        )
    )
"""

import torch
from torch import nn
from torch.nn import functional as F

from mmseg_m2f.core import PixelFeatures
from mmseg_m2f.registry import MODELS, TASK_UTILS


@MODELS.register_module()
class L1MaskLoss(nn.Module):
    """Mean absolute difference at the sampled points, summed over the M matched masks."""

    def forward(self, point_logits, point_targets, num_masks):
        """Take two tensors (M, P) and the normalizer; return a scalar."""
        return (point_logits.sigmoid() - point_targets).abs().mean(-1).sum() / num_masks


@TASK_UTILS.register_module()
class L1MaskCost:
    """Mean absolute difference of each of Q predicted masks and each of N targets."""

    def __call__(self, class_logits, point_logits, labels, point_targets):
        """Use point_logits (Q, P) and point_targets (N, P); return costs (Q, N)."""
        return torch.cdist(point_logits.sigmoid(), point_targets, p=1) / point_logits.shape[1]


@MODELS.register_module()
class TopDownPixelDecoder(nn.Module):
    """A feature pyramid without attention."""

    # The head gives these two sizes to the transformer decoder.
    channels = 256  # of all maps in PixelFeatures
    num_levels = 3  # number of maps in PixelFeatures.memory

    def __init__(self, in_channels):
        """The head passes the channels of the backbone's maps, finest (stride 4) first."""
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, self.channels, 1) for c in in_channels)

    def forward(self, features):
        """Take the backbone's maps, finest first, and return PixelFeatures."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        maps.reverse()  # coarsest first
        for i in range(1, len(maps)):
            maps[i] = maps[i] + F.interpolate(maps[i - 1], size=maps[i].shape[-2:])
        return PixelFeatures(mask_features=maps[-1], memory=tuple(maps[: self.num_levels]))
