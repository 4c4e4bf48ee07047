"""The names of ResNets and Swins in whole models and in the files of classifiers."""

import re

import torch
from torch import Tensor

from mmseg_m2f.checkpoints.keymap import KeyMap, NameRule, StateDict, left_out, same
from mmseg_m2f.checkpoints.swin import from_unfold_order, relative_position_index, to_unfold_order

# Ours stand on the left; torchvision's and timm's ResNets have the same names.
_RESNET = [
    'conv1.*',
    'bn1.*',
    *(f'layer{{i}}.{{j}}.{layer}{n}.*' for layer in ('conv', 'bn') for n in (1, 2, 3)),
    *(f'layer{{i}}.{{j}}.downsample.{n}.*' for n in (0, 1)),
]
_DETECTRON2_RESNET_BLOCK = [
    ('conv1.weight', 'conv1.weight'),
    ('conv2.weight', 'conv2.weight'),
    ('conv3.weight', 'conv3.weight'),
    ('bn1.*', 'conv1.norm.*'),
    ('bn2.*', 'conv2.norm.*'),
    ('bn3.*', 'conv3.norm.*'),
    ('downsample.0.weight', 'shortcut.weight'),
    ('downsample.1.*', 'shortcut.norm.*'),
]
_DETECTRON2_RESNET = [
    ('conv1.weight', 'stem.conv1.weight'),
    ('bn1.*', 'stem.conv1.norm.*'),
    *(
        (f'layer{stage}.{{i}}.{ours}', f'res{stage + 1}.{{i}}.{theirs}')
        for stage in range(1, 5)
        for ours, theirs in _DETECTRON2_RESNET_BLOCK
    ),
]
# The official Mask2Former and timm have kept the names of the original Swin.
_SWIN = [
    ('patch_embed.projection.*', 'patch_embed.proj.*'),
    ('patch_embed.norm.*', 'patch_embed.norm.*'),
    *(
        (f'stages.{{i}}.blocks.{{j}}.{ours}', f'layers.{{i}}.blocks.{{j}}.{theirs}')
        for ours, theirs in (
            ('norm1.*', 'norm1.*'),
            ('attn.w_msa.qkv.*', 'attn.qkv.*'),
            ('attn.w_msa.proj.*', 'attn.proj.*'),
            ('attn.w_msa.relative_position_bias_table', 'attn.relative_position_bias_table'),
            ('norm2.*', 'norm2.*'),
            ('ffn.layers.0.0.*', 'mlp.fc1.*'),
            ('ffn.layers.1.*', 'mlp.fc2.*'),
        )
    ),
]
# Swin's index buffer, which other projects compute anew.
INDEX_RULE = NameRule('backbone.stages.{i}.blocks.{j}.attn.w_msa.relative_position_index', ())

# The names in Caffe2's model zoo and in Detectron2's ImageNetPretrained/MSRA.
_CAFFE2_BLOCK = re.compile(r'res[2-5]_\d+_branch[12][abc]?_(w|b|bn_[sb])')
# timm's names of a model that was built for its features only.
_FLAT_STAGE = re.compile(r'layers_(\d)\.')


def torchvision_rules(prefix: str) -> list[NameRule]:
    """Return the rules of a ResNet; ``prefix`` is theirs before ``conv1`` and ``layer1``."""
    return same(zip(_RESNET, _RESNET, strict=True), 'backbone.', prefix)


def detectron2_rules(prefix: str) -> list[NameRule]:
    """Return the rules of a ResNet; ``prefix`` is theirs before ``stem`` and ``res2``."""
    return same(_DETECTRON2_RESNET, 'backbone.', prefix)


def swin_rules(prefix: str) -> list[NameRule]:
    """Return the rules of the original Swin, without patch merging and the norms of the outputs.

    ``prefix`` is theirs before ``patch_embed`` and ``layers``.
    """
    index = f'{prefix}layers.{{i}}.blocks.{{j}}.attn.relative_position_index'
    return [*same(_SWIN, 'backbone.', prefix), *left_out(index)]


def merging_rule(ours: str, theirs: str) -> NameRule:
    """Return the rule for a patch merging layer; theirs has the original order of channels."""
    return NameRule(ours, (theirs,), to_unfold_order, from_unfold_order)


def refuse_caffe(state_dict: StateDict) -> None:
    """Refuse a ResNet that was trained as in Caffe: BGR images, variance not normalized.

    It strides in the first convolution of a block. Names and shapes are the same, so it would load
    and be wrong. It can be recognized only by Caffe2's names, or in a whole Detectron2 model by a
    ``pixel_std`` of one.
    """
    std = state_dict.get('pixel_std')
    is_resnet = any(key.startswith('backbone.res2.') for key in state_dict)
    if any(map(_CAFFE2_BLOCK.fullmatch, state_dict)) or (
        is_resnet and std is not None and bool((std == 1).all())
    ):
        raise ValueError(
            'a ResNet of Caffe (MSRA) has other strides than ours and expects BGR images: its '
            "weights would load and be wrong. Take torchvision's ResNet"
        )


def _classifier_of_swin(first_merging: int) -> KeyMap:
    """Build the key map of a Swin whose stage ``first_merging`` holds the first patch merging."""
    mergings = [
        merging_rule(
            f'backbone.stages.{i}.downsample.*', f'layers.{i + first_merging}.downsample.*'
        )
        for i in range(3)
    ]
    others = left_out('norm.*', 'head.*', 'layers.{i}.blocks.{j}.attn_mask')
    return KeyMap(
        [*swin_rules(''), *mergings, *others],
        spell=lambda key: _FLAT_STAGE.sub(r'layers.\1.', key),
    )


_CLASSIFIER_OF_RESNET = KeyMap([*torchvision_rules(''), *left_out('fc.*')])
_MERGING_AT_THE_END, _MERGING_AT_THE_START = _classifier_of_swin(0), _classifier_of_swin(1)


def merges_at_the_end(state_dict: StateDict) -> bool:
    """Return True if a stage of Swin ends with patch merging: Microsoft's, timm's until 0.6.

    Later releases of timm begin the next stage with it.
    """
    first = ('layers.0.downsample.', 'layers_0.downsample.')
    return any(key.startswith(first) for key in state_dict)


def from_classifier(state_dict: StateDict, layout: str) -> dict[str, Tensor]:
    """Convert a classifier to ``backbone.*``, without its classifying layer and its last norm.

    ``layout`` is one of ``BACKBONE_LAYOUTS``; timm's file is a ResNet or Swin of any release.
    """
    is_resnet = any(key.startswith('layer1.') for key in state_dict)
    if layout == 'torchvision' or (layout == 'timm' and is_resnet):
        keymap = _CLASSIFIER_OF_RESNET
    elif layout == 'swin' or merges_at_the_end(state_dict):
        keymap = _MERGING_AT_THE_END
    else:
        keymap = _MERGING_AT_THE_START
    return with_buffers(keymap.to_ours(state_dict))


def with_buffers(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add buffers that our models save and others may not: Swin's indices, batch norms' counters.

    Raises:
        ValueError: A table of relative positions has an impossible length.
    """
    filled = dict(ours)
    for key, value in ours.items():
        if key.endswith('.relative_position_bias_table'):
            filled[key.replace('bias_table', 'index')] = relative_position_index(value)
        elif key.endswith('.running_var'):
            counter = key.replace('running_var', 'num_batches_tracked')
            filled.setdefault(counter, torch.tensor(0, device=value.device))
    return filled
