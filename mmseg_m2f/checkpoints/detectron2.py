"""Convert the names of the official code, a Detectron2 model."""

import functools
import re

from torch import Tensor

from mmseg_m2f.checkpoints.buffers import with_buffers
from mmseg_m2f.checkpoints.resnet import detectron2_rules, refuse_caffe
from mmseg_m2f.checkpoints.rules import KeyMap, StateDict, same
from mmseg_m2f.checkpoints.swin import INDEX, merging_rule, official_block_rules

_HEAD = 'sem_seg_head.'
_SWIN_BLOCK = 'backbone.layers.{i}.blocks.{j}.'

_PIXEL_DECODER = (
    ('input_proj.{i}.conv.*', 'input_proj.{i}.0.*'),
    ('input_proj.{i}.norm.*', 'input_proj.{i}.1.*'),
    ('level_embed', 'transformer.level_embed'),
    ('lateral.0.conv.weight', 'adapter_1.weight'),
    ('lateral.0.norm.*', 'adapter_1.norm.*'),
    ('output.0.conv.weight', 'layer_1.weight'),
    ('output.0.norm.*', 'layer_1.norm.*'),
    ('mask_proj.*', 'mask_features.*'),
)

_ENCODER_LAYER = (
    ('attn.*', 'self_attn.*'),
    ('norm1.*', 'norm1.*'),
    ('ffn.linear1.*', 'linear1.*'),
    ('ffn.linear2.*', 'linear2.*'),
    ('norm2.*', 'norm2.*'),
)

_DECODER = (
    ('query_feat.*', 'query_feat.*'),
    ('query_embed.*', 'query_embed.*'),
    ('level_embed.*', 'level_embed.*'),
    ('norm.*', 'decoder_norm.*'),
    ('class_embed.*', 'class_embed.*'),
    ('mask_embed.{i}.*', 'mask_embed.layers.{i}.*'),
    ('layers.{i}.cross_attn.*', 'transformer_cross_attention_layers.{i}.multihead_attn.*'),
    ('layers.{i}.cross_norm.*', 'transformer_cross_attention_layers.{i}.norm.*'),
    ('layers.{i}.self_attn.*', 'transformer_self_attention_layers.{i}.self_attn.*'),
    ('layers.{i}.self_norm.*', 'transformer_self_attention_layers.{i}.norm.*'),
    ('layers.{i}.ffn.linear1.*', 'transformer_ffn_layers.{i}.linear1.*'),
    ('layers.{i}.ffn.linear2.*', 'transformer_ffn_layers.{i}.linear2.*'),
    ('layers.{i}.ffn_norm.*', 'transformer_ffn_layers.{i}.norm.*'),
)

# Older spellings. The pixel decoder's prefix is doubled if a file without a version number was
# loaded and saved again.
_SPELLINGS = (
    (re.compile(r'sem_seg_head\.(?!predictor\.|pixel_decoder\.)'), f'{_HEAD}pixel_decoder.'),
    (re.compile(r'sem_seg_head\.(pixel_decoder\.){2,}'), f'{_HEAD}pixel_decoder.'),
    (re.compile(r'sem_seg_head\.predictor\.static_query\.'), f'{_HEAD}predictor.query_feat.'),
)


@functools.cache
def _keymap(head: str) -> KeyMap:
    pixel_decoder = f'{head}.pixel_decoder.'
    return KeyMap(
        [
            *same(_PIXEL_DECODER, pixel_decoder, f'{_HEAD}pixel_decoder.'),
            *same(
                _ENCODER_LAYER,
                f'{pixel_decoder}layers.{{i}}.',
                f'{_HEAD}pixel_decoder.transformer.encoder.layers.{{i}}.',
            ),
            *same(_DECODER, f'{head}.decoder.', f'{_HEAD}predictor.'),
            *detectron2_rules('backbone.'),
            *official_block_rules('backbone.'),
            merging_rule('backbone.stages.{i}.downsample.*', 'backbone.layers.{i}.downsample.*'),
            *same(((f'norm{i}.*', f'norm{i}.*') for i in range(4)), 'backbone.', 'backbone.'),
        ],
        ours_only=[INDEX],
        theirs_only=[
            'criterion.empty_weight',
            'pixel_mean',
            'pixel_std',
            f'{_SWIN_BLOCK}attn.relative_position_index',
        ],
        spell=_spelled_as_today,
    )


def from_detectron2(state_dict: StateDict, head: str = 'decode_head') -> dict[str, Tensor]:
    """Convert an official state dict to ours; ``head`` is our model's name for its head.

    Older spellings work too: ``static_query`` for ``query_feat``, the pixel decoder without its
    prefix or with the prefix doubled. The class weights of the losses, the mean and deviation of
    the images and Swin's index buffers are left out; our own buffers are filled in.

    Raises:
        ValueError: A key is unknown or doubled, or the backbone is a ResNet of Caffe.
    """
    refuse_caffe(state_dict)
    return with_buffers(_keymap(head).to_ours(_without_counters(state_dict)))


def to_detectron2(state_dict: StateDict, head: str = 'decode_head') -> dict[str, Tensor]:
    """Invert ``from_detectron2``, in today's spelling; a ResNet's batch counters are left out.

    Raises:
        ValueError: A key is not of our layout.
    """
    return _keymap(head).to_theirs(_without_counters(state_dict))


def _without_counters(state_dict: StateDict) -> dict[str, Tensor]:
    counters = '.num_batches_tracked'
    return {key: value for key, value in state_dict.items() if not key.endswith(counters)}


def _spelled_as_today(key: str) -> str:
    for pattern, spelling in _SPELLINGS:
        if hit := pattern.match(key):
            key = spelling + key[hit.end() :]
    return key
