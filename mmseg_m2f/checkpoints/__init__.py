"""Other implementations' checkpoints in our layout, and back."""

from mmseg_m2f.checkpoints.keymaps import (
    from_huggingface,
    from_mmseg,
    to_huggingface,
    to_mmseg,
)

__all__ = ['from_huggingface', 'from_mmseg', 'to_huggingface', 'to_mmseg']
