"""Backbones of mmseg and mmdet that compute faster on a CPU: the same modules and parameters."""

from mmseg_m2f.adapters.backbones.speed_up import speed_up

__all__ = ['speed_up']
