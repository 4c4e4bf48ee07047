"""Layouts are recognized: detection, older spellings, heads under both names, refusals."""

import re

import pytest
import torch
from torch import Tensor

from mmseg_m2f import checkpoints
from mmseg_m2f.checkpoints import LAYOUTS, detect_layout, to_ours, to_theirs
from mmseg_m2f.checkpoints.keymap import KeyMap, NameRule
from tests.checkpoints.published_names import (
    BACKBONES,
    State,
    assert_same,
    detectron2,
    random_state,
)

FOREIGN = [layout for layout in LAYOUTS if layout != 'mmseg_m2f']


@pytest.fixture(scope='module', params=BACKBONES)
def ours(request: pytest.FixtureRequest) -> State:
    return to_ours(random_state(detectron2(request.param)), 'detectron2')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_round_trips(ours: State, layout: str) -> None:
    """Whatever the head is called: ours, theirs, ours, theirs, bit for bit."""
    theirs = to_theirs(ours, layout)
    assert detect_layout(theirs) == layout
    assert_same(to_ours(theirs, layout), ours)
    renamed = to_ours(theirs, layout, head='panoptic_head')
    assert [checkpoints.head_prefix(state) for state in (ours, renamed)] == [
        'decode_head',
        'panoptic_head',
    ]
    assert detect_layout(renamed) == 'mmseg_m2f'
    assert_same(to_ours(renamed, 'mmseg_m2f'), ours)
    if layout != 'mmseg_m2f':
        assert_same(to_theirs(renamed, layout), theirs)


@pytest.mark.parametrize('layout', FOREIGN)
def test_nothing_is_converted_twice(ours: State, layout: str) -> None:
    """Ours are no names of theirs: patch merging cannot be permuted once more."""
    theirs = to_theirs(ours, layout)
    with pytest.raises(ValueError, match=r'do not belong to this layout|no key begins with'):
        to_ours(to_ours(theirs, layout), layout)
    with pytest.raises(ValueError, match=r'do not belong to this layout|0 heads'):
        to_theirs(theirs, layout)


@pytest.mark.parametrize('layout', ['mmdet', 'mmseg'])
def test_names_of_before_the_rewrite_of_mmdets_transformers(ours: State, layout: str) -> None:
    theirs = to_theirs(ours, layout)
    spellings = {
        r'(pixel_decoder\.encoder\.layers\.\d\.)self_attn\.': r'\1attentions.0.',
        r'(transformer_decoder\.layers\.\d\.)cross_attn\.': r'\1attentions.0.',
        r'(transformer_decoder\.layers\.\d\.)self_attn\.': r'\1attentions.1.',
        # The backbone's feed-forward layers never had the older name.
        r'(_head.*)\.ffn\.layers\.(0\.0|1)\.(weight|bias)$': r'\1.ffns.0.layers.\2.\3',
    }
    old = dict(theirs)
    for spelling, older in spellings.items():
        old = {re.sub(spelling, older, key): value for key, value in old.items()}
    assert len(theirs.keys() - old.keys()) == 6 * 2 * (4 + 2) + 9 * 4 * (2 + 1)
    assert detect_layout(old) == layout
    assert_same(to_ours(old, layout), ours)


def test_older_names_of_hugging_face(ours: State) -> None:
    """Swin in a wrapper, as first released; a ResNet out of timm."""
    encoder = 'model.pixel_level_module.encoder.'
    theirs = to_theirs(ours, 'hf')
    if 'backbone.conv1.weight' in ours:
        old = {key: value for key, value in theirs.items() if not key.startswith(encoder)}
        old |= {
            key.replace('backbone.', f'{encoder}_backbone.'): value
            for key, value in ours.items()
            if key.startswith('backbone.')
        }
    else:
        old = {key.replace(f'{encoder}e', f'{encoder}model.e'): theirs[key] for key in theirs}
        for stage in range(4):
            new, first = (
                f'{encoder}hidden_states_norms.{n}.' for n in (f'stage{stage + 1}', stage)
            )
            old = {key.replace(new, first): value for key, value in old.items()}
        assert f'{encoder}model.encoder.layers.0.downsample.norm.weight' in old
        assert f'{encoder}hidden_states_norms.0.weight' in old
    assert detect_layout(old) == 'hf'
    assert_same(to_ours(old, 'hf'), ours)


def keys(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(1) for name in names}


@pytest.mark.parametrize(
    ('state', 'layout'),
    [
        (keys('backbone.layer1.0.conv1.weight'), 'mmseg_m2f'),
        (keys('backbone.stages.0.blocks.0.norm1.weight'), 'mmseg_m2f'),
        (keys('backbone.layers.0.blocks.0.norm1.weight'), 'detectron2'),
        (keys('backbone.res2.0.conv1.weight', 'backbone.stem.conv1.weight'), 'detectron2'),
        (keys('panoptic_head.pixel_decoder.level_embed'), 'mmseg_m2f'),
        (keys('panoptic_head.pixel_decoder.level_encoding.weight', 'backbone.x'), 'mmdet'),
    ],
)
def test_parts_of_models_have_a_layout_too(state: State, layout: str) -> None:
    assert detect_layout(state) == layout


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ({}, 'no Mask2Former'),
        (keys('weight'), r'(?s)no Mask2Former.*sem_seg_head\..*first'),
        # Another model of mmseg, whose backbone alone is known.
        (keys('backbone.layer1.0.conv1.weight', 'decode_head.conv_seg.weight'), 'no Mask2Former'),
        (keys('model.decoder.weight', 'state_dict.backbone.conv1.weight'), 'no Mask2Former'),
        (
            keys('sem_seg_head.predictor.decoder_norm.bias', 'decode_head.decoder.norm.bias'),
            'mixes the names of mmseg_m2f and detectron2',
        ),
    ],
)
def test_unknown_names(state: State, message: str) -> None:
    with pytest.raises(checkpoints.UnknownLayoutError, match=message):
        detect_layout(state)


@pytest.mark.parametrize('layout', [*FOREIGN, *checkpoints.BACKBONE_LAYOUTS])
def test_a_name_of_no_layout(layout: str) -> None:
    name = {'mmdet': 'panoptic_head.x', 'mmseg': 'decode_head.x'}.get(layout, 'x')
    with pytest.raises(ValueError, match=f"1 keys do not belong .*'{name}'"):
        to_ours(keys(name), layout)
    if layout in FOREIGN:
        with pytest.raises(ValueError, match=r'1 keys do not belong .*decode_head\.x'):
            to_theirs(keys('decode_head.decoder.norm.weight', 'decode_head.x'), layout)


def test_names_of_layouts_and_heads_are_checked() -> None:
    with pytest.raises(ValueError, match=r'layout must be one of mmseg_m2f, .*, swin, got .foo'):
        to_ours({}, 'foo')
    with pytest.raises(ValueError, match='head must be one of decode_head, panoptic_head, got'):
        to_ours({}, 'hf', head='head')
    with pytest.raises(ValueError, match='0 heads where one is wanted'):
        to_theirs(keys('backbone.conv1.weight'), 'hf')
    with pytest.raises(ValueError, match=r'layout must be one of .*, hf, got .timm'):
        to_theirs({}, 'timm')
    both = keys('decode_head.decoder.norm.bias', 'panoptic_head.decoder.norm.bias')
    with pytest.raises(ValueError, match='2 heads where one is wanted'):
        to_ours(both, 'mmseg_m2f')


@pytest.mark.parametrize(
    ('names', 'prefix'),
    [
        (('module.a', 'module.b.module.c'), 'module.'),
        (('module._orig_mod.a', 'module._orig_mod.b'), 'module._orig_mod.'),
        (('model.a', 'class_predictor.b'), ''),
        (('modules.a',), ''),
        ((), ''),
    ],
)
def test_only_a_prefix_of_all_names_is_a_wrapper(names: tuple[str, ...], prefix: str) -> None:
    found, bare = checkpoints.without_wrapper(keys(*names))
    assert found == prefix
    assert list(bare) == [name[len(prefix) :] for name in names]


def test_a_rule_reads_in_both_directions() -> None:
    """``*`` stands for parameters of one module, never for a whole list of modules."""
    table = KeyMap([NameRule('a.{i}.{j}.*', ('b.{j}.c.{i}.*',))])
    ours, theirs = keys('a.1.20.out_proj.bias'), keys('b.20.c.1.out_proj.bias')
    assert table.to_ours(theirs) == ours
    assert table.to_theirs(ours) == theirs
    with pytest.raises(ValueError, match='do not belong to this layout'):
        table.to_ours(keys('b.20.c.1.0.weight'))
