"""A backbone of our models is initialized by any known file completely, or by none."""

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

import mmseg_m2f.adapters  # noqa: F401 - the hook
from mmseg_m2f.adapters.checkpoints.convert_file import convert_checkpoint
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.rules import load_rules
from mmseg_m2f.checkpoints import resize_window, to_theirs
from tests.adapters.small_models import segmentor

SCOPES = ('mmseg', 'mmdet')
LAYOUTS = ('mmseg_m2f', 'mmdet', 'detectron2', 'hf')
State = dict[str, Tensor]


def swin(scope: str = 'mmseg', **settings: object) -> dict:
    sizes = {'embed_dims': 8, 'depths': [1] * 4, 'num_heads': [1, 2, 4, 8], 'window_size': 7}
    return {'type': f'{scope}.SwinTransformer', **sizes, **settings}


def resnet(**settings: object) -> dict:
    return {**segmentor()['backbone'], **settings}


def build(backbone: dict) -> nn.Module:
    """One of our models around the backbone."""
    if 'mmdet' in backbone['type']:
        pytest.importorskip('mmdet')
    init_default_scope('mmseg')
    return MODELS.build({**segmentor(), 'backbone': backbone})


def initialised(backbone: dict, file: Path) -> State:
    """Return the backbone's state after a runner's call of ``init_weights``."""
    init = {'type': 'Pretrained', 'checkpoint': str(file)}
    model = build({**backbone, 'init_cfg': init})
    model.init_weights()
    return model.backbone.state_dict()


def drawn(backbone: dict) -> State:
    """Return a state in which no tensor of the backbone has its initial value."""
    model = build(backbone)
    for value in model.backbone.state_dict().values():
        if value.is_floating_point():
            value.normal_().abs_()
    return model.state_dict()


def of_backbone(state: State) -> State:
    prefix = 'backbone.'
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def torchvisions(state: State) -> State:
    return {**of_backbone(state), 'fc.weight': torch.ones(2, 64), 'fc.bias': torch.ones(2)}


def microsofts(state: State) -> State:
    """Return a classifier's file: other names and order, no output norms, a head of its own."""
    theirs = {
        key: value
        for key, value in of_backbone(to_theirs(state, 'detectron2')).items()
        if not key.startswith('norm')
    }
    return {**theirs, 'norm.weight': torch.ones(64), 'head.weight': torch.ones(1000, 64)}


def timms(state: State) -> State:
    """Return timm's file (since 0.9): patch merging at the start of the next stage."""
    names = {f'layers.{i}.downsample': f'layers.{i + 1}.downsample' for i in range(3)}
    moved = {}
    for key, value in microsofts(state).items():
        old = next((name for name in names if key.startswith(name)), '')
        moved[names[old] + key.removeprefix(old) if old else key] = value
    return moved


def written(content: Any, folder: Path) -> Path:
    torch.save(content, folder / 'file.pth')
    return folder / 'file.pth'


def different(got: State, wanted: State, leave_out: tuple[str, ...] = ()) -> list[str]:
    assert got.keys() == wanted.keys()
    left_out = (*leave_out, 'num_batches_tracked')
    return [
        key
        for key in wanted
        if not any(part in key for part in left_out) and not torch.equal(got[key], wanted[key])
    ]


NORMS = tuple(f'norm{i}.' for i in range(4))


@pytest.mark.parametrize('wrapped', [False, True])
def test_microsofts_file(said: list[str], warned: list[str], tmp_path: Path, wrapped: bool) -> None:
    source = drawn(swin())
    state = microsofts(source)
    got = initialised(swin(), written({'model': state} if wrapped else state, tmp_path))
    assert any("the layout of Microsoft's Swin: converted" in line for line in said)
    assert any(line.startswith('loading the backbone') for line in said)
    assert not different(got, of_backbone(source), NORMS)
    # A classifier has no norms of the outputs: they start as ones, and nobody needs to know.
    assert not warned


def test_torchvisions_file(warned: list[str], tmp_path: Path) -> None:
    source = drawn(resnet())
    got = initialised(resnet(), written(torchvisions(source), tmp_path))
    assert not different(got, of_backbone(source))
    assert not warned


@pytest.mark.parametrize(
    ('backbone', 'other', 'makers'),
    [
        (resnet(depth=101), resnet(depth=50), torchvisions),
        (resnet(depth=50), resnet(depth=101), torchvisions),
        (swin(depths=[2, 2, 18, 2]), swin(depths=[2, 2, 6, 2]), microsofts),
        (swin('mmdet', depths=[2, 2, 18, 2]), swin(depths=[2, 2, 6, 2]), microsofts),
        (swin(embed_dims=16), swin(), microsofts),
        (swin(embed_dims=16), swin(), of_backbone),
        (resnet(), swin(), microsofts),
    ],
    ids=['r101-r50', 'r50-r101', 's-t', 's-t mmdet', 'wide', 'wide openmmlab', 'r18-swin'],
)
def test_the_file_of_another_backbone(
    backbone: dict, other: dict, makers: Any, tmp_path: Path
) -> None:
    file = written(makers(drawn(other)), tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r'init_cfg is not of this backbone \(less than 95% match\).*--min-matched',
    ):
        initialised(backbone, file)


def test_whatever_fits_where_no_bound_is_set(warned: list[str], tmp_path: Path) -> None:
    source = drawn(swin())
    with load_rules(min_matched=0):
        got = initialised(swin(depths=[1, 1, 3, 1]), written(microsofts(source), tmp_path))
    key = 'stages.2.blocks.0.attn.w_msa.qkv.weight'
    assert torch.equal(got[key], source[f'backbone.{key}'])
    assert any('missing: backbone.stages.2.blocks.1' in line for line in warned)


def test_a_tensor_that_stays_as_drawn_is_a_warning(warned: list[str], tmp_path: Path) -> None:
    state = torchvisions(drawn(resnet()))
    state['conv1.weight'] = torch.ones(8, 4, 7, 7)
    initialised(resnet(), written(state, tmp_path))
    assert any('missing: backbone.conv1.weight (8x4x7x7 for' in line for line in warned)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('backbone', [swin(), swin('mmdet'), resnet()], ids=['', 'mmdet', 'resnet'])
def test_a_whole_model_s_file(layout: str, backbone: dict, tmp_path: Path) -> None:
    """The heads in the file are ignored."""
    source = drawn(resnet() if backbone['type'] == 'ResNet' else swin())
    theirs = to_theirs(source, layout)
    if layout == 'detectron2':
        theirs |= {'criterion.empty_weight': torch.ones(4)}
    got = initialised(backbone, written({'state_dict': theirs, 'meta': {}}, tmp_path))
    assert not different(got, of_backbone(source))


def test_the_resnet_with_which_the_official_code_starts(tmp_path: Path) -> None:
    """Torchvision's under Detectron2's names; its classifier is part of the stem there."""
    source = drawn(resnet())
    state = of_backbone(to_theirs(source, 'detectron2'))
    arrays = {key: value.numpy() for key, value in state.items()}
    arrays['stem.fc.weight'] = np.ones((2, 64), np.float32)
    content = {'model': arrays, '__author__': 'torchvision', 'matching_heuristics': True}
    (tmp_path / 'R-18.pkl').write_bytes(pickle.dumps(content))
    assert not different(initialised(resnet(), tmp_path / 'R-18.pkl'), of_backbone(source))


def test_other_models_around_the_same_backbone(tmp_path: Path) -> None:
    source = drawn(swin())
    others = {'decode_head.conv_seg.weight': 2, 'auxiliary_head.conv_seg.weight': 3}
    others |= {'neck.conv.weight': 4, 'rpn_head.conv.weight': 5}
    state = {f'backbone.{key}': value for key, value in of_backbone(source).items()}
    state |= {key: torch.ones(size) for key, size in others.items()}
    assert not different(initialised(swin(), written(state, tmp_path)), of_backbone(source))


def test_a_prefix(tmp_path: Path) -> None:
    """MMEngine takes it off before anything of ours sees the names."""
    source = drawn(resnet())
    file = written(to_theirs(source, 'detectron2'), tmp_path)
    init = {'type': 'Pretrained', 'checkpoint': str(file), 'prefix': 'backbone.'}
    model = build(resnet(init_cfg=init))
    model.init_weights()
    assert not different(model.backbone.state_dict(), of_backbone(source))


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize('layout', ['swin', 'mmseg_m2f', 'detectron2', 'hf'])
def test_another_window(scope: str, layout: str, warned: list[str], tmp_path: Path) -> None:
    source = drawn(swin())
    state = microsofts(source) if layout == 'swin' else to_theirs(source, layout)
    got = initialised(swin(scope, window_size=4), written(state, tmp_path))
    source = of_backbone(source)
    leave_out = (*(NORMS if layout == 'swin' else ()), 'relative_position')
    assert not different(got, source, leave_out)
    for name in (key for key in got if key.endswith('bias_table')):
        torch.testing.assert_close(got[name], resize_window(source[name], 49))
    fresh = build(swin(window_size=4)).backbone.state_dict()
    assert all(torch.equal(got[key], fresh[key]) for key in got if key.endswith('index'))
    assert sum('other windows in its Swin' in line for line in warned) == 1


def test_a_conversion_for_another_window(said: list[str], tmp_path: Path) -> None:
    source = drawn(swin())
    model = {**segmentor(), 'backbone': swin(window_size=4)}
    out = tmp_path / 'out.pth'
    config = Config({'model': model, 'default_scope': 'mmseg'})
    convert_checkpoint(written(microsofts(source), tmp_path), out, config)
    assert any('other windows in its Swin' in line for line in said)
    # The file keeps its own window, as it keeps its queries.
    table = 'backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table'
    assert torch.equal(torch.load(out)['state_dict'][table], source[table])
    initialised(swin(window_size=4), out)


@pytest.mark.parametrize('convert_weights', [False, True])
@pytest.mark.parametrize('makers', [microsofts, timms, of_backbone, dict])
def test_mmdets_swin_takes_what_mmsegs_takes(
    makers: Any, convert_weights: bool, tmp_path: Path
) -> None:
    source = drawn(swin())
    file = written(makers(source), tmp_path)
    backbone = swin('mmdet', convert_weights=convert_weights)
    got = initialised(backbone, file)
    norms = NORMS if makers in (microsofts, timms) else ()
    assert not different(got, of_backbone(source), norms)


def test_mmdets_swin_and_a_file_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r'file\.pth of init_cfg holds no weights'):
        initialised(swin('mmdet'), written({'epoch': 3}, tmp_path))


def test_a_copy_of_mmdets_swin_initialises_itself(tmp_path: Path) -> None:
    source = drawn(swin())
    init = {'type': 'Pretrained', 'checkpoint': str(written(timms(source), tmp_path))}
    original = build(swin('mmdet', init_cfg=init))
    before, twin = deepcopy(original.state_dict()), deepcopy(original)
    twin.init_weights()
    assert not different(twin.backbone.state_dict(), of_backbone(source), NORMS)
    assert not different(original.state_dict(), before)


def test_mmdets_swin_without_our_head_is_mmdets(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    init_default_scope('mmdet')
    file = written(timms(drawn(swin())), tmp_path)
    init = ConfigDict(type='Pretrained', checkpoint=str(file))
    with pytest.raises(IndexError):
        MODELS.build(swin('mmdet', init_cfg=init)).init_weights()
