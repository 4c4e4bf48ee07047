"""Convert the names of the official code, a Detectron2 model."""

import functools
import re

from torch import Tensor

from mmseg_m2f.checkpoints import backbones
from mmseg_m2f.checkpoints.keymap import KeyMap, StateDict, left_out, same

_PIXEL_DECODER = (
    ('input_proj.{i}.conv.*', 'input_proj.{i}.0.*'),
    ('input_proj.{i}.norm.*', 'input_proj.{i}.1.*'),
    ('level_embed', 'transformer.level_embed'),
    ('layers.{i}.attn.*', 'transformer.encoder.layers.{i}.self_attn.*'),
    ('layers.{i}.norm1.*', 'transformer.encoder.layers.{i}.norm1.*'),
    ('layers.{i}.ffn.linear1.*', 'transformer.encoder.layers.{i}.linear1.*'),
    ('layers.{i}.ffn.linear2.*', 'transformer.encoder.layers.{i}.linear2.*'),
    ('layers.{i}.norm2.*', 'transformer.encoder.layers.{i}.norm2.*'),
    ('lateral.0.conv.weight', 'adapter_1.weight'),
    ('lateral.0.norm.*', 'adapter_1.norm.*'),
    ('output.0.conv.weight', 'layer_1.weight'),
    ('output.0.norm.*', 'layer_1.norm.*'),
    ('mask_proj.*', 'mask_features.*'),
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
    (r'sem_seg_head\.(?!predictor\.|pixel_decoder\.)', 'sem_seg_head.pixel_decoder.'),
    (r'sem_seg_head\.(pixel_decoder\.){2,}', 'sem_seg_head.pixel_decoder.'),
    (r'sem_seg_head\.predictor\.static_query\.', 'sem_seg_head.predictor.query_feat.'),
)


@functools.cache
def _keymap(head: str) -> KeyMap:
    return KeyMap(
        [
            *same(_PIXEL_DECODER, f'{head}.pixel_decoder.', 'sem_seg_head.pixel_decoder.'),
            *same(_DECODER, f'{head}.decoder.', 'sem_seg_head.predictor.'),
            *backbones.detectron2_rules('backbone.'),
            *backbones.swin_rules('backbone.'),
            backbones.merging_rule(
                'backbone.stages.{i}.downsample.*', 'backbone.layers.{i}.downsample.*'
            ),
            *same(((f'norm{i}.*', f'norm{i}.*') for i in range(4)), 'backbone.', 'backbone.'),
            backbones.INDEX_RULE,
            *left_out('criterion.empty_weight', 'pixel_mean', 'pixel_std'),
        ],
        spell=_spelled_as_today,
    )


def from_detectron2(state_dict: StateDict, head: str) -> dict[str, Tensor]:
    """Convert an official state dict, also of an older spelling; ``head`` is ours for its head."""
    backbones.refuse_caffe(state_dict)
    return backbones.with_buffers(_keymap(head).to_ours(_without_counters(state_dict)))


def to_detectron2(state_dict: StateDict, head: str) -> dict[str, Tensor]:
    """Invert ``from_detectron2``, in today's spelling; a ResNet's batch counters are left out."""
    return _keymap(head).to_theirs(_without_counters(state_dict))


def _without_counters(state_dict: StateDict) -> dict[str, Tensor]:
    counters = '.num_batches_tracked'
    return {key: value for key, value in state_dict.items() if not key.endswith(counters)}


def _spelled_as_today(key: str) -> str:
    for pattern, spelling in _SPELLINGS:
        key = re.sub(f'^{pattern}', spelling, key)
    return key
