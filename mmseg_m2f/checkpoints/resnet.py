"""Rules for the names of a ResNet: ours are torchvision's and timm's; Detectron2 has others."""

import re

from mmseg_m2f.checkpoints.rules import Rule, StateDict, same

# Ours stand on the left.
_TORCHVISION = (
    ('conv1.*', 'conv1.*'),
    ('bn1.*', 'bn1.*'),
    *(
        (f'layer{stage}.{{i}}.{module}.*',) * 2
        for stage in range(1, 5)
        for module in ('conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3', 'downsample.0')
    ),
    *((f'layer{stage}.{{i}}.downsample.1.*',) * 2 for stage in range(1, 5)),
)

_DETECTRON2 = (
    ('conv1.weight', 'stem.conv1.weight'),
    ('bn1.*', 'stem.conv1.norm.*'),
    *(
        (f'layer{stage - 1}.{{i}}.{ours}', f'res{stage}.{{i}}.{theirs}')
        for stage in range(2, 6)
        for ours, theirs in (
            *((f'conv{n}.weight', f'conv{n}.weight') for n in (1, 2, 3)),
            *((f'bn{n}.*', f'conv{n}.norm.*') for n in (1, 2, 3)),
            ('downsample.0.weight', 'shortcut.weight'),
            ('downsample.1.*', 'shortcut.norm.*'),
        )
    ),
)

# The names in Caffe2's model zoo and in Detectron2's ImageNetPretrained/MSRA.
_CAFFE2_BLOCK = re.compile(r'res[2-5]_\d+_branch[12][abc]?_(w|b|bn_[sb])')


def torchvision_rules(prefix: str) -> list[Rule]:
    """Return the rules; ``prefix`` is theirs before ``conv1`` and ``layer1``."""
    return same(_TORCHVISION, 'backbone.', prefix)


def detectron2_rules(prefix: str) -> list[Rule]:
    """Return the rules; ``prefix`` is theirs before ``stem`` and ``res2``."""
    return same(_DETECTRON2, 'backbone.', prefix)


def refuse_caffe(state_dict: StateDict) -> None:
    """Refuse a ResNet that was trained as in Caffe: BGR images, variance not normalized.

    It strides in the first convolution of a block. Names and shapes are the same, so it would load
    and be wrong. It can be recognized only by Caffe2's names, or in a whole Detectron2 model by a
    ``pixel_std`` of one.

    Raises:
        ValueError: It is one.
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
