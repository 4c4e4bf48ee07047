"""Convert the names of Hugging Face's ``Mask2FormerForUniversalSegmentation``."""

import functools

from torch import Tensor

from mmseg_m2f.checkpoints import backbones
from mmseg_m2f.checkpoints.keymap import KeyMap, NameRule, StateDict, left_out, same

_PIXEL_DECODER = (
    ('input_proj.{i}.conv.*', 'input_projections.{i}.0.*'),
    ('input_proj.{i}.norm.*', 'input_projections.{i}.1.*'),
    ('level_embed', 'level_embed'),
    ('layers.{i}.attn.*', 'encoder.layers.{i}.self_attn.*'),
    ('layers.{i}.norm1.*', 'encoder.layers.{i}.self_attn_layer_norm.*'),
    ('layers.{i}.ffn.linear1.*', 'encoder.layers.{i}.fc1.*'),
    ('layers.{i}.ffn.linear2.*', 'encoder.layers.{i}.fc2.*'),
    ('layers.{i}.norm2.*', 'encoder.layers.{i}.final_layer_norm.*'),
    ('lateral.0.conv.*', 'adapter_1.0.*'),
    ('lateral.0.norm.*', 'adapter_1.1.*'),
    ('output.0.conv.*', 'layer_1.0.*'),
    ('output.0.norm.*', 'layer_1.1.*'),
    ('mask_proj.*', 'mask_projection.*'),
)

_DECODER = (
    ('query_feat.*', 'queries_features.*'),
    ('query_embed.*', 'queries_embedder.*'),
    ('level_embed.*', 'level_embed.*'),
    ('norm.*', 'decoder.layernorm.*'),
    ('mask_embed.{i}.*', 'decoder.mask_predictor.mask_embedder.{i}.0.*'),
    ('layers.{i}.cross_attn.*', 'decoder.layers.{i}.cross_attn.*'),
    ('layers.{i}.cross_norm.*', 'decoder.layers.{i}.cross_attn_layer_norm.*'),
    ('layers.{i}.self_attn.out_proj.*', 'decoder.layers.{i}.self_attn.out_proj.*'),
    ('layers.{i}.self_norm.*', 'decoder.layers.{i}.self_attn_layer_norm.*'),
    ('layers.{i}.ffn.linear1.*', 'decoder.layers.{i}.fc1.*'),
    ('layers.{i}.ffn.linear2.*', 'decoder.layers.{i}.fc2.*'),
    ('layers.{i}.ffn_norm.*', 'decoder.layers.{i}.final_layer_norm.*'),
)

_SWIN = (
    ('patch_embed.projection.*', 'embeddings.patch_embeddings.projection.*'),
    ('patch_embed.norm.*', 'embeddings.norm.*'),
    *((f'norm{i}.*', f'hidden_states_norms.stage{i + 1}.*') for i in range(4)),
    # Only for reading: the first releases.
    *((f'norm{i}.*', f'hidden_states_norms.{i}.*') for i in range(4)),
)

_SWIN_BLOCK = (
    ('norm1.*', 'layernorm_before.*'),
    ('attn.w_msa.relative_position_bias_table', 'attention.self.relative_position_bias_table'),
    ('attn.w_msa.proj.*', 'attention.output.dense.*'),
    ('norm2.*', 'layernorm_after.*'),
    ('ffn.layers.0.0.*', 'intermediate.dense.*'),
    ('ffn.layers.1.*', 'output.dense.*'),
)

_RESNET_BLOCK = (
    ('conv1', 'layer.0.convolution'),
    ('conv2', 'layer.1.convolution'),
    ('conv3', 'layer.2.convolution'),
    ('bn1', 'layer.0.normalization'),
    ('bn2', 'layer.1.normalization'),
    ('bn3', 'layer.2.normalization'),
    ('downsample.0', 'shortcut.convolution'),
    ('downsample.1', 'shortcut.normalization'),
)

_RESNET = (
    ('conv1.*', 'embedder.embedder.convolution.*'),
    ('bn1.*', 'embedder.embedder.normalization.*'),
    *(
        (f'layer{stage + 1}.{{i}}.{ours}.*', f'encoder.stages.{stage}.layers.{{i}}.{theirs}.*')
        for stage in range(4)
        for ours, theirs in _RESNET_BLOCK
    ),
)

_BACKBONE = 'model.pixel_level_module.encoder.'
_TRANSFORMER = 'model.transformer_module.'

# Files have the names on the right. On the left stand the names of a backbone of timm, of the first
# releases, and of a live model of transformers 5, which renames Swin's modules when it loads, and
# back when it saves.
_SPELLINGS = (
    ('.encoder._backbone.', '.encoder.'),
    ('.encoder.model.', '.encoder.'),
    ('.encoder.swin.', '.encoder.'),
    ('.attention.q_proj.', '.attention.self.query.'),
    ('.attention.k_proj.', '.attention.self.key.'),
    ('.attention.v_proj.', '.attention.self.value.'),
    ('.attention.o_proj.', '.attention.output.dense.'),
    ('.attention.relative_position_bias.', '.attention.self.'),
    ('.mlp.fc1.', '.intermediate.dense.'),
    ('.mlp.fc2.', '.output.dense.'),
)


@functools.cache
def _keymap(head: str) -> KeyMap:
    their_attention = f'{_TRANSFORMER}decoder.layers.{{i}}.self_attn.'
    return KeyMap(
        [
            *same(_PIXEL_DECODER, f'{head}.pixel_decoder.', 'model.pixel_level_module.decoder.'),
            *same(_DECODER, f'{head}.decoder.', _TRANSFORMER),
            # The self-attention's projection is split, the cross-attention's is not.
            NameRule(
                f'{head}.decoder.layers.{{i}}.self_attn.in_proj_*',
                tuple(f'{their_attention}{part}_proj.*' for part in 'qkv'),
            ),
            NameRule(f'{head}.decoder.class_embed.*', ('class_predictor.*',)),
            *same(_RESNET, 'backbone.', _BACKBONE),
            *_swin_rules(),
            # Only for reading: a backbone of timm.
            *backbones.torchvision_rules(_BACKBONE),
            # The class weights of the losses, and a classifier's norm that is not used.
            *left_out('criterion.empty_weight', f'{_BACKBONE}layernorm.*'),
        ],
        spell=_published,
    )


def _swin_rules() -> list[NameRule]:
    ours, theirs = 'backbone.stages.{i}.', f'{_BACKBONE}encoder.layers.{{i}}.'
    attention = f'{theirs}blocks.{{j}}.attention.self.'
    return [
        *same(_SWIN, 'backbone.', _BACKBONE),
        *same(_SWIN_BLOCK, f'{ours}blocks.{{j}}.', f'{theirs}blocks.{{j}}.'),
        NameRule(
            f'{ours}blocks.{{j}}.attn.w_msa.qkv.*',
            tuple(f'{attention}{part}.*' for part in ('query', 'key', 'value')),
        ),
        backbones.merging_rule(f'{ours}downsample.*', f'{theirs}downsample.*'),
        backbones.INDEX_RULE,
        *left_out(f'{attention}relative_position_index'),
    ]


def from_huggingface(state_dict: StateDict, head: str = 'decode_head') -> dict[str, Tensor]:
    """Convert the state dict of a ``Mask2FormerForUniversalSegmentation`` to ours.

    The names may be those of published files, old or new, or of a live model of transformers 5. The
    backbone is a ResNet (Hugging Face's or timm's) or a Swin. Missing buffers are filled in, so
    that strict loading works. ``head`` is our model's name for its head.

    Raises:
        ValueError: A key is unknown, or a part of a split tensor is missing.
    """
    return backbones.with_buffers(_keymap(head).to_ours(state_dict))


def to_huggingface(state_dict: StateDict, head: str = 'decode_head') -> dict[str, Tensor]:
    """Convert our state dict to the names of Hugging Face's files, for ``from_pretrained``.

    Raises:
        ValueError: A key is not of our layout, or its backbone is neither ResNet nor Swin.
    """
    return _keymap(head).to_theirs(state_dict)


def _published(key: str) -> str:
    if key.startswith(('pixel_level_module.', 'transformer_module.')):
        key = f'model.{key}'  # the model without its class layer has no such prefix
    if key.startswith(_BACKBONE):
        for spelling, published in _SPELLINGS:
            key = key.replace(spelling, published)
    return key
