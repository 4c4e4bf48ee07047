"""Heads, detector, segmentor and their parts, built from configs.

Importing this room registers them. mmseg and mmdet are imported only when a model needs them.
"""

from mmseg_m2f.adapters.models import decode_head, lazy, parts, tta, universal_head

__all__ = ['decode_head', 'lazy', 'parts', 'tta', 'universal_head']
