"""Parameter names of other implementations beside ours.

Our names are those of an mmseg segmentor: ``backbone.`` and ``decode_head.``. Each table has our
name on the left.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mmseg_m2f.checkpoints.rules import KeyMap, Rule, StateDict


def to_unfold_order(value: Tensor) -> Tensor:
    """Input channels of Swin's patch merging, from blocks of pixels to ``nn.Unfold``'s order.

    The original code concatenates whole pixels, parity (row, column) = (0,0), (1,0), (0,1), (1,1);
    mmseg's and mmdet's unfold is channel-major with the parities row by row. Shapes are equal, so
    nothing but provenance tells which order a tensor has. The last axis has length ``4 * C``.
    """
    return value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def from_unfold_order(value: Tensor) -> Tensor:
    """Inverse of ``to_unfold_order``."""
    return value.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)


def _same(pairs: Iterable[tuple[str, str]], ours: str, theirs: str) -> list[Rule]:
    """One-to-one rules from a table of names below the prefixes ``ours`` and ``theirs``."""
    return [Rule(ours + left, (theirs + right,)) for left, right in pairs]


_HF_PIXEL_DECODER = (
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

_HF_DECODER = (
    ('query_feat.*', 'queries_features.*'),
    ('query_embed.*', 'queries_embedder.*'),
    ('level_embed.*', 'level_embed.*'),
    ('norm.*', 'decoder.layernorm.*'),
    ('mask_embed.{i}.*', 'decoder.mask_predictor.mask_embedder.{i}.0.*'),
)

_HF_DECODER_LAYER = (
    ('cross_attn.*', 'cross_attn.*'),
    ('cross_norm.*', 'cross_attn_layer_norm.*'),
    ('self_attn.out_proj.*', 'self_attn.out_proj.*'),
    ('self_norm.*', 'self_attn_layer_norm.*'),
    ('ffn.linear1.*', 'fc1.*'),
    ('ffn.linear2.*', 'fc2.*'),
    ('ffn_norm.*', 'final_layer_norm.*'),
)

_HF_SWIN_BLOCK = (
    ('norm1.*', 'layernorm_before.*'),
    ('attn.w_msa.relative_position_bias_table', 'attention.self.relative_position_bias_table'),
    ('attn.w_msa.proj.*', 'attention.output.dense.*'),
    ('norm2.*', 'layernorm_after.*'),
    ('ffn.layers.0.0.*', 'intermediate.dense.*'),
    ('ffn.layers.1.*', 'output.dense.*'),
)

_HF_SWIN = (
    ('patch_embed.projection.*', 'embeddings.patch_embeddings.projection.*'),
    ('patch_embed.norm.*', 'embeddings.norm.*'),
    *((f'norm{i}.*', f'hidden_states_norms.stage{i + 1}.*') for i in range(4)),
)

_HF_RESNET = (
    ('conv1.*', 'embedder.embedder.convolution.*'),
    ('bn1.*', 'embedder.embedder.normalization.*'),
    *(
        (f'layer{stage + 1}.{{i}}.{ours}.*', f'encoder.stages.{stage}.layers.{{i}}.{theirs}.*')
        for stage in range(4)
        for ours, theirs in (
            ('conv1', 'layer.0.convolution'),
            ('bn1', 'layer.0.normalization'),
            ('conv2', 'layer.1.convolution'),
            ('bn2', 'layer.1.normalization'),
            ('conv3', 'layer.2.convolution'),
            ('bn3', 'layer.2.normalization'),
            ('downsample.0', 'shortcut.convolution'),
            ('downsample.1', 'shortcut.normalization'),
        )
    ),
)

_BACKBONE = 'model.pixel_level_module.encoder.'
_BLOCK = f'{_BACKBONE}encoder.layers.{{i}}.blocks.{{j}}.'
_DECODER = 'model.transformer_module.'
_DECODER_LAYER = f'{_DECODER}decoder.layers.{{i}}.'

HUGGINGFACE = KeyMap(
    [
        *_same(
            _HF_PIXEL_DECODER, 'decode_head.pixel_decoder.', 'model.pixel_level_module.decoder.'
        ),
        *_same(_HF_DECODER, 'decode_head.decoder.', _DECODER),
        *_same(_HF_DECODER_LAYER, 'decode_head.decoder.layers.{i}.', _DECODER_LAYER),
        # Hugging Face splits the self-attention's projection but not the cross-attention's.
        Rule(
            'decode_head.decoder.layers.{i}.self_attn.in_proj_*',
            tuple(f'{_DECODER_LAYER}self_attn.{part}_proj.*' for part in 'qkv'),
        ),
        Rule('decode_head.decoder.class_embed.*', ('class_predictor.*',)),
        *_same(_HF_RESNET, 'backbone.', _BACKBONE),
        *_same(_HF_SWIN, 'backbone.', _BACKBONE),
        *_same(_HF_SWIN_BLOCK, 'backbone.stages.{i}.blocks.{j}.', _BLOCK),
        Rule(
            'backbone.stages.{i}.blocks.{j}.attn.w_msa.qkv.*',
            tuple(f'{_BLOCK}attention.self.{part}.*' for part in ('query', 'key', 'value')),
        ),
        Rule(
            'backbone.stages.{i}.downsample.*',
            (f'{_BACKBONE}encoder.layers.{{i}}.downsample.*',),
            to_unfold_order,
            from_unfold_order,
        ),
    ],
    ours_only=['backbone.stages.{i}.blocks.{j}.attn.w_msa.relative_position_index'],
    theirs_only=[
        # The losses' class weights, and the norm of a Swin classifier that no segmentor uses.
        'criterion.empty_weight',
        f'{_BACKBONE}layernorm.*',
        f'{_BLOCK}attention.self.relative_position_index',
    ],
)

# Transformers 5 renames Swin's modules while it loads, and back while it saves: files keep the
# names on the right, a live model's state dict has those on the left.
_TRANSFORMERS_5_SWIN = (
    ('.encoder.swin.', '.encoder.'),
    ('.attention.q_proj.', '.attention.self.query.'),
    ('.attention.k_proj.', '.attention.self.key.'),
    ('.attention.v_proj.', '.attention.self.value.'),
    ('.attention.o_proj.', '.attention.output.dense.'),
    ('.attention.relative_position_bias.', '.attention.self.'),
    ('.mlp.fc1.', '.intermediate.dense.'),
    ('.mlp.fc2.', '.output.dense.'),
)


def from_huggingface(state_dict: StateDict) -> dict[str, Tensor]:
    """Our state dict from that of a ``Mask2FormerForUniversalSegmentation``.

    Takes the names of published files and those of a live model of transformers 5; backbone ResNet
    or Swin. Swin's index buffer, which files lack, is filled in so that strict loading works.

    Raises:
        ValueError: a key belongs to neither layout, or part of a split tensor is absent.
    """
    ours = HUGGINGFACE.to_ours({_published(key): value for key, value in state_dict.items()})
    for key, table in list(ours.items()):
        if key.endswith('relative_position_bias_table'):
            ours[key.replace('bias_table', 'index')] = relative_position_index(table)
    return ours


def to_huggingface(state_dict: StateDict) -> dict[str, Tensor]:
    """Our state dict under the names of Hugging Face's published files, for ``from_pretrained``.

    Raises:
        ValueError: a key is not of our layout, or its backbone is neither ResNet nor Swin.
    """
    return HUGGINGFACE.to_theirs(state_dict)


def relative_position_index(table: Tensor) -> Tensor:
    """Swin's lookup ``(M * M, M * M)`` int64 into a bias ``table ((2M - 1)^2, heads)``."""
    side = (math.isqrt(len(table)) + 1) // 2
    steps = torch.arange(side)
    position = (steps[:, None] * (2 * side - 1) + steps).flatten()
    return position[:, None] - position + 2 * side * (side - 1)


def _published(key: str) -> str:
    if not key.startswith(_BACKBONE):
        return key
    for live, published in _TRANSFORMERS_5_SWIN:
        key = key.replace(live, published)
    return key


_MM_PIXEL_DECODER = (
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

_MM_DECODER = (
    ('query_feat.*', 'query_feat.*'),
    ('query_embed.*', 'query_embed.*'),
    ('level_embed.*', 'level_embed.*'),
    ('norm.*', 'transformer_decoder.post_norm.*'),
    ('class_embed.*', 'cls_embed.*'),
    # Their MLP is a Sequential in which the activations are counted.
    *((f'mask_embed.{i}.*', f'mask_embed.{2 * i}.*') for i in range(3)),
)

_MM_DECODER_LAYER = (
    ('cross_attn.*', 'cross_attn.attn.*'),
    ('cross_norm.*', 'norms.0.*'),
    ('self_attn.*', 'self_attn.attn.*'),
    ('self_norm.*', 'norms.1.*'),
    ('ffn.linear1.*', 'ffn.layers.0.0.*'),
    ('ffn.linear2.*', 'ffn.layers.1.*'),
    ('ffn_norm.*', 'norms.2.*'),
)

MMSEG_HEAD = KeyMap(
    [
        *_same(_MM_PIXEL_DECODER, 'decode_head.pixel_decoder.', 'decode_head.pixel_decoder.'),
        *_same(_MM_DECODER, 'decode_head.decoder.', 'decode_head.'),
        *_same(
            _MM_DECODER_LAYER,
            'decode_head.decoder.layers.{i}.',
            'decode_head.transformer_decoder.layers.{i}.',
        ),
    ]
)


def from_mmseg(state_dict: StateDict) -> dict[str, Tensor]:
    """Our state dict from that of an mmseg segmentor with mmseg's own Mask2Former head.

    Everything outside ``decode_head.`` (the backbone, say) is the same in both and passes.

    Raises:
        ValueError: a key below ``decode_head.`` is unknown.
    """
    head, others = _split_head(state_dict)
    return others | MMSEG_HEAD.to_ours(head)


def to_mmseg(state_dict: StateDict) -> dict[str, Tensor]:
    """Inverse of ``from_mmseg``."""
    head, others = _split_head(state_dict)
    return others | MMSEG_HEAD.to_theirs(head)


def _split_head(state_dict: StateDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    head = {key: value for key, value in state_dict.items() if key.startswith('decode_head.')}
    return head, {key: value for key, value in state_dict.items() if key not in head}
