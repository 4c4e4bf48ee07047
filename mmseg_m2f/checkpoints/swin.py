"""Rules for the names of the original Swin, and the channel order of its patch merging."""

from torch import Tensor

from mmseg_m2f.checkpoints.rules import Rule, same

_BLOCK = 'backbone.stages.{i}.blocks.{j}.'
INDEX = f'{_BLOCK}attn.w_msa.relative_position_index'

# The official Mask2Former and timm have kept the names of the original code.
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
    """Return the rules for everything but patch merging and the norms of the outputs.

    ``prefix`` is theirs before ``patch_embed`` and ``layers``.
    """
    return [
        Rule('backbone.patch_embed.projection.*', (f'{prefix}patch_embed.proj.*',)),
        Rule('backbone.patch_embed.norm.*', (f'{prefix}patch_embed.norm.*',)),
        *same(_OFFICIAL_BLOCK, _BLOCK, f'{prefix}layers.{{i}}.blocks.{{j}}.'),
    ]


def merging_rule(ours: str, theirs: str) -> Rule:
    """Return the rule for a patch merging layer; theirs has the original order of channels."""
    return Rule(ours, (theirs,), to_unfold_order, from_unfold_order)


def to_unfold_order(value: Tensor) -> Tensor:
    """Reorder the input channels of Swin's patch merging to the order of ``nn.Unfold``.

    The original code concatenates the pixels of a 2 x 2 block, (row, column) = (0,0), (1,0), (0,1),
    (1,1), each with all channels. mmseg and mmdet unfold: the four pixels of the first channel, row
    by row, then of the next. The shapes are equal, so only the source of a tensor tells its order.
    The last axis has length ``4 * C``.
    """
    return value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def from_unfold_order(value: Tensor) -> Tensor:
    """Invert ``to_unfold_order``."""
    return value.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)
