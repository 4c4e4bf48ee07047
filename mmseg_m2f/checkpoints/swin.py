"""The names of the original Swin, and the order of channels in its patch merging."""

from torch import Tensor

from mmseg_m2f.checkpoints.rules import Rule, same

_BLOCK = 'backbone.stages.{i}.blocks.{j}.'
INDEX = f'{_BLOCK}attn.w_msa.relative_position_index'

# The names of the original code, which the official Mask2Former and timm kept.
_OFFICIAL_BLOCK = (
    ('norm1.*', 'norm1.*'),
    ('attn.w_msa.qkv.*', 'attn.qkv.*'),
    ('attn.w_msa.proj.*', 'attn.proj.*'),
    ('attn.w_msa.relative_position_bias_table', 'attn.relative_position_bias_table'),
    ('norm2.*', 'norm2.*'),
    ('ffn.layers.0.0.*', 'mlp.fc1.*'),
    ('ffn.layers.1.*', 'mlp.fc2.*'),
)


def official_block_rules(prefix: str) -> list[Rule]:
    """Everything but patch merging and the norms of the output, for original names.

    ``prefix`` is theirs in front of ``patch_embed`` and ``layers``.
    """
    return [
        Rule('backbone.patch_embed.projection.*', (f'{prefix}patch_embed.proj.*',)),
        Rule('backbone.patch_embed.norm.*', (f'{prefix}patch_embed.norm.*',)),
        *same(_OFFICIAL_BLOCK, _BLOCK, f'{prefix}layers.{{i}}.blocks.{{j}}.'),
    ]


def merging_rule(ours: str, theirs: str) -> Rule:
    """A patch merging layer, theirs in the original order of channels."""
    return Rule(ours, (theirs,), to_unfold_order, from_unfold_order)


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
