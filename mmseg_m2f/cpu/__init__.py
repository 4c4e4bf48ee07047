"""Backbones of mmseg and mmdet that compute faster on a CPU: the same modules and parameters."""

from mmseg_m2f.cpu.speed_up import faster_forwards, speed_up

__all__ = ['faster_forwards', 'speed_up']
