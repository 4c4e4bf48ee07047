"""Convert the files of classifiers that initialize a backbone: torchvision, timm, Swin."""

import re

from torch import Tensor

from mmseg_m2f.checkpoints.buffers import with_buffers
from mmseg_m2f.checkpoints.resnet import torchvision_rules
from mmseg_m2f.checkpoints.rules import KeyMap, StateDict
from mmseg_m2f.checkpoints.swin import merging_rule, official_block_rules

# timm's names of a model that was built for its features only.
_FLAT_STAGE = re.compile(r'layers_(\d)\.')


def _swin(first_merging: int) -> KeyMap:
    """Build the rules of Swin; their stage ``first_merging`` holds the first patch merging."""
    mergings = [
        merging_rule(
            f'backbone.stages.{i}.downsample.*', f'layers.{i + first_merging}.downsample.*'
        )
        for i in range(3)
    ]
    return KeyMap(
        [*official_block_rules(''), *mergings],
        theirs_only=[
            'norm.*',
            'head.*',
            'layers.{i}.blocks.{j}.attn.relative_position_index',
            'layers.{i}.blocks.{j}.attn_mask',
        ],
        spell=lambda key: _FLAT_STAGE.sub(r'layers.\1.', key),
    )


_RESNET = KeyMap(torchvision_rules(''), theirs_only=['fc.*'])
_MERGING_AT_THE_END, _MERGING_AT_THE_START = _swin(0), _swin(1)


def merges_at_the_end(state_dict: StateDict) -> bool:
    """Return True if a stage of Swin ends with patch merging: Microsoft's, timm's until 0.6.

    Later releases of timm begin the next stage with it.
    """
    return any(
        key.startswith(('layers.0.downsample.', 'layers_0.downsample.')) for key in state_dict
    )


def from_backbone_file(state_dict: StateDict, layout: str) -> dict[str, Tensor]:
    """Convert a classifier to ``backbone.*``, without its classifying layer and its last norm.

    ``layout`` is one of ``BACKBONE_LAYOUTS``; timm's file is a ResNet or Swin of any release.

    Raises:
        ValueError: A key is unknown.
    """
    is_resnet = any(key.startswith('layer1.') for key in state_dict)
    if layout == 'torchvision' or (layout == 'timm' and is_resnet):
        keymap = _RESNET
    elif layout == 'swin' or merges_at_the_end(state_dict):
        keymap = _MERGING_AT_THE_END
    else:
        keymap = _MERGING_AT_THE_START
    return with_buffers(keymap.to_ours(state_dict))
