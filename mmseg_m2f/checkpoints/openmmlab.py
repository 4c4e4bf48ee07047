"""Convert the names of mmdet's Mask2Former head, which mmseg wraps under another first name."""

import functools
import re

from torch import Tensor

from mmseg_m2f.checkpoints.keymap import KeyMap, StateDict, same

_PIXEL_DECODER = (
    ('input_proj.{i}.conv.*', 'input_convs.{i}.conv.*'),
    ('input_proj.{i}.norm.*', 'input_convs.{i}.gn.*'),
    ('level_embed', 'level_encoding.weight'),
    ('layers.{i}.attn.*', 'encoder.layers.{i}.self_attn.*'),
    ('layers.{i}.norm1.*', 'encoder.layers.{i}.norms.0.*'),
    ('layers.{i}.ffn.linear1.*', 'encoder.layers.{i}.ffn.layers.0.0.*'),
    ('layers.{i}.ffn.linear2.*', 'encoder.layers.{i}.ffn.layers.1.*'),
    ('layers.{i}.norm2.*', 'encoder.layers.{i}.norms.1.*'),
    ('lateral.{i}.conv.*', 'lateral_convs.{i}.conv.*'),
    ('lateral.{i}.norm.*', 'lateral_convs.{i}.gn.*'),
    ('output.{i}.conv.*', 'output_convs.{i}.conv.*'),
    ('output.{i}.norm.*', 'output_convs.{i}.gn.*'),
    ('mask_proj.*', 'mask_feature.*'),
)

_DECODER = (
    ('query_feat.*', 'query_feat.*'),
    ('query_embed.*', 'query_embed.*'),
    ('level_embed.*', 'level_embed.*'),
    ('norm.*', 'transformer_decoder.post_norm.*'),
    ('class_embed.*', 'cls_embed.*'),
    # Their MLP is a Sequential that counts the activations too.
    *((f'mask_embed.{i}.*', f'mask_embed.{2 * i}.*') for i in range(3)),
    ('layers.{i}.cross_attn.*', 'transformer_decoder.layers.{i}.cross_attn.attn.*'),
    ('layers.{i}.cross_norm.*', 'transformer_decoder.layers.{i}.norms.0.*'),
    ('layers.{i}.self_attn.*', 'transformer_decoder.layers.{i}.self_attn.attn.*'),
    ('layers.{i}.self_norm.*', 'transformer_decoder.layers.{i}.norms.1.*'),
    ('layers.{i}.ffn.linear1.*', 'transformer_decoder.layers.{i}.ffn.layers.0.0.*'),
    ('layers.{i}.ffn.linear2.*', 'transformer_decoder.layers.{i}.ffn.layers.1.*'),
    ('layers.{i}.ffn_norm.*', 'transformer_decoder.layers.{i}.norms.2.*'),
)

# The names of encoder and decoder layers before mmdet 3.0.
_SPELLINGS = (
    (r'(pixel_decoder\.encoder\.layers\.\d+\.)attentions\.0\.', r'\1self_attn.'),
    (r'(transformer_decoder\.layers\.\d+\.)attentions\.0\.', r'\1cross_attn.'),
    (r'(transformer_decoder\.layers\.\d+\.)attentions\.1\.', r'\1self_attn.'),
    (r'((?:encoder|decoder)\.layers\.\d+\.)ffns\.0\.', r'\1ffn.'),
)


@functools.cache
def _keymap(ours: str, theirs: str) -> KeyMap:
    return KeyMap(
        [
            *same(_PIXEL_DECODER, f'{ours}.pixel_decoder.', f'{theirs}.pixel_decoder.'),
            *same(_DECODER, f'{ours}.decoder.', f'{theirs}.'),
        ],
        spell=_spelled_as_today,
    )


def from_openmmlab(state_dict: StateDict, head: str, theirs: str) -> dict[str, Tensor]:
    """Convert the state dict of mmdet's or mmseg's own Mask2Former to ours.

    Names outside the head, such as the backbone's, are the same in both. ``head`` is our model's
    name for its head, ``theirs`` their model's.
    """
    mine, others = _split(state_dict, theirs)
    if not mine:
        raise ValueError(f'no key begins with {theirs}.')
    return others | _keymap(head, theirs).to_ours(mine)


def to_openmmlab(state_dict: StateDict, head: str, theirs: str) -> dict[str, Tensor]:
    """Invert ``from_openmmlab``, in today's spelling."""
    mine, others = _split(state_dict, head)
    return others | _keymap(head, theirs).to_theirs(mine)


def _split(state_dict: StateDict, head: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    mine = {key: value for key, value in state_dict.items() if key.startswith(f'{head}.')}
    return mine, {key: value for key, value in state_dict.items() if key not in mine}


def _spelled_as_today(key: str) -> str:
    for pattern, spelling in _SPELLINGS:
        key = re.sub(pattern, spelling, key)
    return key
