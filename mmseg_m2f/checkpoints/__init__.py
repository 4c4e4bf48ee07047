"""Convert checkpoints of other implementations to our layout and back: names and tensors."""

from mmseg_m2f.checkpoints.huggingface import from_huggingface, to_huggingface
from mmseg_m2f.checkpoints.huggingface_config import huggingface_config
from mmseg_m2f.checkpoints.layouts import (
    BACKBONE_LAYOUTS,
    HEADS,
    LAYOUTS,
    UnknownLayoutError,
    detect_layout,
    head_prefix,
    to_ours,
    to_theirs,
    without_wrapper,
)
from mmseg_m2f.checkpoints.resizing import (
    reorder_classes,
    resize_classes,
    resize_queries,
    things_first,
)
from mmseg_m2f.checkpoints.swin import resize_window

__all__ = [
    'BACKBONE_LAYOUTS',
    'HEADS',
    'LAYOUTS',
    'UnknownLayoutError',
    'detect_layout',
    'from_huggingface',
    'head_prefix',
    'huggingface_config',
    'reorder_classes',
    'resize_classes',
    'resize_queries',
    'resize_window',
    'things_first',
    'to_huggingface',
    'to_ours',
    'to_theirs',
    'without_wrapper',
]
