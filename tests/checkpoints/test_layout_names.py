"""Layouts are recognized: detection, older spellings, heads under both names, refusals."""

import re

import pytest
import torch
from torch import Tensor

from mmseg_m2f.checkpoints import (
    BACKBONE_LAYOUTS,
    LAYOUTS,
    UnknownLayoutError,
    detect_layout,
    head_prefix,
    to_ours,
    to_theirs,
    without_wrapper,
)
from tests.checkpoints.published_names import BACKBONES, detectron2, random_state, timm_swin

FOREIGN = [layout for layout in LAYOUTS if layout != 'mmseg_m2f']


@pytest.fixture(scope='module', params=BACKBONES)
def ours(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    return to_ours(random_state(detectron2(request.param)), 'detectron2')


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('layout', LAYOUTS)
def test_round_trips(ours: dict[str, Tensor], layout: str) -> None:
    """Whatever the head is called: ours, theirs, ours, theirs, bit for bit."""
    theirs = to_theirs(ours, layout)
    assert detect_layout(theirs) == layout
    assert_same(to_ours(theirs, layout), ours)
    renamed = to_ours(theirs, layout, head='panoptic_head')
    assert [head_prefix(state) for state in (ours, renamed)] == ['decode_head', 'panoptic_head']
    assert detect_layout(renamed) == 'mmseg_m2f'
    if layout != 'mmseg_m2f':
        assert_same(to_theirs(renamed, layout), theirs)
    assert_same(to_ours(renamed, 'mmseg_m2f'), ours)


@pytest.mark.parametrize('layout', FOREIGN)
def test_nothing_is_converted_twice(ours: dict[str, Tensor], layout: str) -> None:
    """Ours are no names of theirs: patch merging cannot be permuted once more."""
    theirs = to_theirs(ours, layout)
    with pytest.raises(ValueError, match=r'do not belong to this layout|no key begins with'):
        to_ours(to_ours(theirs, layout), layout)
    with pytest.raises(ValueError, match=r'do not belong to this layout|0 heads'):
        to_theirs(theirs, layout)


@pytest.mark.parametrize('layout', ['mmdet', 'mmseg'])
def test_names_of_before_the_rewrite_of_mmdets_transformers(
    ours: dict[str, Tensor], layout: str
) -> None:
    theirs = to_theirs(ours, layout)
    spellings = {
        r'pixel_decoder\.encoder\.layers\.(\d)\.self_attn\.': (
            r'pixel_decoder.encoder.layers.\1.attentions.0.'
        ),
        r'transformer_decoder\.layers\.(\d)\.cross_attn\.': (
            r'transformer_decoder.layers.\1.attentions.0.'
        ),
        r'transformer_decoder\.layers\.(\d)\.self_attn\.': (
            r'transformer_decoder.layers.\1.attentions.1.'
        ),
        r'\.ffn\.layers\.(0\.0|1)\.(weight|bias)$': r'.ffns.0.layers.\1.\2',
    }
    old = dict(theirs)
    for spelling, older in spellings.items():
        # The backbone's feed-forward layers never had the older name.
        old = {
            key if key.startswith('backbone.') else re.sub(spelling, older, key): value
            for key, value in old.items()
        }
    assert len(theirs.keys() - old.keys()) == 6 * 2 * (4 + 2) + 9 * 4 * (2 + 1)
    assert detect_layout(old) == layout
    assert_same(to_ours(old, layout), ours)


def test_older_names_of_hugging_face(ours: dict[str, Tensor]) -> None:
    """Swin in a wrapper, as first released; a ResNet out of timm."""
    encoder = 'model.pixel_level_module.encoder.'
    theirs = to_theirs(ours, 'hf')
    if 'backbone.conv1.weight' in ours:
        old = {key: value for key, value in theirs.items() if not key.startswith(encoder)}
        for key, value in ours.items():
            if key.startswith('backbone.'):
                old[f'{encoder}_backbone.{key.removeprefix("backbone.")}'] = value
    else:
        old = {
            re.sub(
                r'hidden_states_norms\.stage(\d)',
                lambda hit: f'hidden_states_norms.{int(hit[1]) - 1}',
                key,
            ).replace(f'{encoder}e', f'{encoder}model.e'): value
            for key, value in theirs.items()
        }
        assert f'{encoder}model.embeddings.norm.weight' in old
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
def test_parts_of_models_have_a_layout_too(state: dict[str, Tensor], layout: str) -> None:
    assert detect_layout(state) == layout


@pytest.mark.parametrize(
    'state',
    [
        {},
        keys('weight'),
        # Another model of mmseg, whose backbone alone is known.
        keys('backbone.layer1.0.conv1.weight', 'decode_head.conv_seg.weight'),
        keys('model.decoder.weight', 'state_dict.backbone.conv1.weight'),
    ],
)
def test_unknown_names(state: dict[str, Tensor]) -> None:
    with pytest.raises(UnknownLayoutError, match=r'(?s)no Mask2Former.*sem_seg_head\..*first'):
        detect_layout(state)


def test_names_of_two_models() -> None:
    state = keys('sem_seg_head.predictor.decoder_norm.bias', 'decode_head.decoder.norm.bias')
    with pytest.raises(UnknownLayoutError, match='mixes the names of mmseg_m2f and detectron2'):
        detect_layout(state)
    with pytest.raises(ValueError, match='2 heads where one is wanted'):
        head_prefix(keys('decode_head.decoder.norm.bias', 'panoptic_head.decoder.norm.bias'))


@pytest.mark.parametrize('layout', [*FOREIGN, *BACKBONE_LAYOUTS])
def test_a_name_of_no_layout(layout: str) -> None:
    name = {'mmdet': 'panoptic_head.x', 'mmseg': 'decode_head.x'}.get(layout, 'x')
    with pytest.raises(ValueError, match=f"1 keys do not belong .*'{name}'"):
        to_ours(keys(name), layout)
    if layout in FOREIGN:
        head = 'decode_head.decoder.norm.weight'
        with pytest.raises(ValueError, match=r'1 keys do not belong .*decode_head\.x'):
            to_theirs(keys(head, 'decode_head.x'), layout)


def test_names_of_layouts_and_heads_are_checked() -> None:
    with pytest.raises(ValueError, match=r'layout must be one of mmseg_m2f, .*, swin, got .foo'):
        to_ours({}, 'foo')
    with pytest.raises(ValueError, match='head must be one of decode_head, panoptic_head, got'):
        to_ours({}, 'hf', head='head')
    with pytest.raises(ValueError, match='0 heads where one is wanted'):
        to_theirs(keys('backbone.conv1.weight'), 'hf')
    with pytest.raises(ValueError, match=r'layout must be one of .*, hf, got .timm'):
        to_theirs(to_ours(random_state(timm_swin()), 'timm'), 'timm')


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
    found, bare = without_wrapper(keys(*names))
    assert found == prefix
    assert list(bare) == [name[len(prefix) :] for name in names]
