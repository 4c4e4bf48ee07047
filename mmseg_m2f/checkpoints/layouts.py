"""Recognize the layout of a state dict, and convert it to ours and back."""

import re

from torch import Tensor

from mmseg_m2f.checkpoints.backbones import from_classifier, merges_at_the_end, refuse_caffe
from mmseg_m2f.checkpoints.detectron2 import from_detectron2, to_detectron2
from mmseg_m2f.checkpoints.huggingface import from_huggingface, to_huggingface
from mmseg_m2f.checkpoints.keymap import StateDict
from mmseg_m2f.checkpoints.openmmlab import from_openmmlab, to_openmmlab

LAYOUTS = ('mmseg_m2f', 'detectron2', 'mmdet', 'mmseg', 'hf')
BACKBONE_LAYOUTS = ('torchvision', 'timm', 'swin')
HEADS = ('decode_head', 'panoptic_head')
_HEAD_OF = {'mmseg': 'decode_head', 'mmdet': 'panoptic_head'}
_WRAPPERS = ('module.', '_orig_mod.', 'model.')

_MM = (
    r'\.(transformer_decoder|cls_embed|query_feat|query_embed|level_embed|mask_embed|'
    r'pixel_decoder\.(input_convs|level_encoding|encoder|lateral_convs|output_convs|mask_feature))\.'
)
_MODELS = {
    'mmseg_m2f': r'(decode_head|panoptic_head)\.(decoder\.|pixel_decoder\.'
    r'(input_proj\.|level_embed$|layers\.|lateral\.|output\.|mask_proj\.))',
    'detectron2': r'sem_seg_head\.',
    'mmdet': 'panoptic_head' + _MM,
    'mmseg': 'decode_head' + _MM,
    'hf': r'(model\.)?(pixel_level_module|transformer_module)\.|class_predictor\.',
}
# The first names of a backbone alone; mmseg's and mmdet's are ours.
_BACKBONES = {
    'mmseg_m2f': r'backbone\.(conv1|layer1\.0|stages\.0)\.',
    'detectron2': r'backbone\.(stem|res2\.0|layers\.0)\.',
    'torchvision': r'layer1\.0\.conv1\.',
    'swin': r'layers[._]0\.blocks\.0\.attn\.qkv\.',
}


class UnknownLayoutError(ValueError):
    """Raised when the names of a state dict belong to no known layout, or to several."""


def detect_layout(state_dict: StateDict) -> str:
    """Recognize the layout by its names: one of ``LAYOUTS`` or ``BACKBONE_LAYOUTS``.

    The head decides; if there is none, the backbone does. timm's ResNets have the names of
    torchvision and its older Swins those of Microsoft, and count as such. A ``backbone.*`` of mmseg
    or mmdet alone counts as ours.

    Raises:
        UnknownLayoutError: The names belong to no layout or to several.
        ValueError: The weights are a ResNet of Caffe2.
    """
    refuse_caffe(state_dict)
    models = _matching(_MODELS, state_dict)
    if len(models) > 1:
        raise UnknownLayoutError(f'the checkpoint mixes the names of {" and ".join(models)}')
    if models:
        return models[0]
    backbones = _matching(_BACKBONES, state_dict)
    # With other names beside ``backbone.`` it is the backbone of another model.
    kinds = {key.startswith('backbone.') for key in state_dict}
    if len(backbones) != 1 or len(kinds) != 1:
        raise UnknownLayoutError(
            f'these {len(state_dict)} names are of no Mask2Former and of no known backbone '
            f'({", ".join((*LAYOUTS, *BACKBONE_LAYOUTS))}). The names of a head begin with '
            'decode_head., panoptic_head., sem_seg_head. or model.transformer_module., those of a '
            f'backbone with layer1. or layers.; the first names here are {list(state_dict)[:5]}'
        )
    if backbones == ['swin'] and not merges_at_the_end(state_dict):
        return 'timm'
    return backbones[0]


def to_ours(state_dict: StateDict, layout: str, head: str = 'decode_head') -> dict[str, Tensor]:
    """Convert a state dict of another layout to ours; a backbone's file gives ``backbone.*``.

    Swin's relative position index and the counters of batch norms are filled in. A state dict
    cannot be converted twice, because our names belong to no other layout. Tensors whose content
    stays are shared, not copied.

    Args:
        state_dict: weights in the layout.
        layout: one of ``LAYOUTS`` or ``BACKBONE_LAYOUTS``.
        head: our model's name for its head, one of ``HEADS``.

    Raises:
        ValueError: The layout or head is unknown, a key does not belong to the layout, a part of a
            tensor is missing, or a shape does not fit its name.
    """
    _check('layout', layout, (*LAYOUTS, *BACKBONE_LAYOUTS))
    _check('head', head, HEADS)
    if layout == 'mmseg_m2f':
        has_head = any(key.partition('.')[0] in HEADS for key in state_dict)
        old = head_prefix(state_dict) if has_head else head
        return {re.sub(rf'^{old}\.', f'{head}.', key): value for key, value in state_dict.items()}
    if layout == 'detectron2':
        return from_detectron2(state_dict, head)
    if layout == 'hf':
        return from_huggingface(state_dict, head)
    if layout in BACKBONE_LAYOUTS:
        return from_classifier(state_dict, layout)
    return from_openmmlab(state_dict, head, _HEAD_OF[layout])


def to_theirs(state_dict: StateDict, layout: str) -> dict[str, Tensor]:
    """Invert ``to_ours`` for whole models; the head may have either of its names.

    Buffers and counters that the layout does not have are left out.

    Raises:
        ValueError: The layout is not one of ``LAYOUTS``, or a key is not of our layout.
    """
    _check('layout', layout, LAYOUTS)
    if layout == 'mmseg_m2f':
        return dict(state_dict)
    head = head_prefix(state_dict)
    if layout == 'detectron2':
        return to_detectron2(state_dict, head)
    if layout == 'hf':
        return to_huggingface(state_dict, head)
    return to_openmmlab(state_dict, head, _HEAD_OF[layout])


def head_prefix(state_dict: StateDict) -> str:
    """Return the name of the head in a state dict of our layout, one of ``HEADS``.

    Raises:
        ValueError: It has none or both.
    """
    found = [head for head in HEADS if any(key.startswith(f'{head}.') for key in state_dict)]
    if len(found) != 1:
        wanted = ' or '.join(f'{head}.' for head in HEADS)
        raise ValueError(
            f'{len(found)} heads where one is wanted: keys that begin with {wanted} (a backbone '
            'alone can become mmseg_m2f only)'
        )
    return found[0]


def without_wrapper(state_dict: StateDict) -> tuple[str, StateDict]:
    """Take off what a wrapper puts in front of all names, and return it with the state dict.

    Wrappers are ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile) and ``model.``
    (Lightning), also one within another. Without a common prefix the first is empty.
    """
    for wrapper in _WRAPPERS:
        if state_dict and all(key.startswith(wrapper) for key in state_dict):
            bare = {key.removeprefix(wrapper): value for key, value in state_dict.items()}
            inner, innermost = without_wrapper(bare)
            return wrapper + inner, innermost
    return '', state_dict


def _matching(patterns: dict[str, str], state_dict: StateDict) -> list[str]:
    return [name for name, found in patterns.items() if any(re.match(found, k) for k in state_dict)]


def _check(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f'{what} must be one of {", ".join(allowed)}, got {value!r}')
