"""A mask loss, a match cost and a pixel decoder of one's own; load with ``custom_imports``."""

import torch
from torch import nn
from torch.nn import functional as F

from mmseg_m2f.core import PixelFeatures
from mmseg_m2f.registry import MODELS, TASK_UTILS


@MODELS.register_module()
class L1MaskLoss(nn.Module):
    def forward(self, point_logits, point_targets, num_masks):
        return (point_logits.sigmoid() - point_targets).abs().mean(-1).sum() / num_masks


@TASK_UTILS.register_module()
class L1MaskCost:
    def __call__(self, class_logits, point_logits, labels, point_targets):
        return torch.cdist(point_logits.sigmoid(), point_targets, p=1) / point_logits.shape[1]


@MODELS.register_module()
class TopDownPixelDecoder(nn.Module):
    # The decoder takes its sizes from these: channels of all maps, number of maps in memory.
    channels, num_levels = 256, 3

    def __init__(self, in_channels):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, self.channels, 1) for c in in_channels)

    def forward(self, features):
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)][::-1]
        for i in range(1, len(maps)):
            maps[i] = maps[i] + F.interpolate(maps[i - 1], size=maps[i].shape[-2:])
        # Memory is coarsest first.
        return PixelFeatures(mask_features=maps[-1], memory=tuple(maps[: self.num_levels]))
