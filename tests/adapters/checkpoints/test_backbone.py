"""A backbone of our models is initialized by any known file completely, or by none."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

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

State = dict[str, Tensor]
NORMS = tuple(f'norm{i}.' for i in range(4))


def swin(scope: str = 'mmseg', **settings: object) -> dict:
    sizes = {'embed_dims': 8, 'depths': [1] * 4, 'num_heads': [1, 2, 4, 8], 'window_size': 7}
    return {'type': f'{scope}.SwinTransformer', **sizes, **settings}


def resnet(**settings: object) -> dict:
    return {**segmentor()['backbone'], **settings}


BACKBONES = {
    'resnet': resnet(),
    'swin': swin(),
    'swin of mmdet': swin('mmdet'),
    'swin of mmdet that converts': swin('mmdet', convert_weights=True),
}


def build(backbone: dict) -> nn.Module:
    """One of our models around the backbone."""
    if 'mmdet' in backbone['type']:
        pytest.importorskip('mmdet')
    init_default_scope('mmseg')
    return MODELS.build({**segmentor(), 'backbone': backbone})


def initialized(backbone: dict, file: Path, **init: str) -> State:
    """Return the backbone's state after a runner's call of ``init_weights``."""
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(file), **init}
    model = build({**backbone, 'init_cfg': init_cfg})
    model.init_weights()
    return model.backbone.state_dict()


def drawn(backbone: dict) -> State:
    """Return a state in which no tensor of the backbone has its initial value."""
    model = build(backbone)
    for value in model.backbone.state_dict().values():
        if value.is_floating_point():
            value.normal_().abs_()
    return model.state_dict()


def written(content: Any, folder: Path) -> Path:
    torch.save(content, folder / 'file.pth')
    return folder / 'file.pth'


def different(got: State, wanted: State, leave_out: tuple[str, ...] = ()) -> list[str]:
    assert got.keys() == wanted.keys()
    kept = [k for k in wanted if not any(p in k for p in (*leave_out, 'num_batches_tracked'))]
    return [key for key in kept if not torch.equal(got[key], wanted[key])]


def of_backbone(state: State) -> State:
    prefix = 'backbone.'
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def torchvisions(state: State) -> State:
    return {**of_backbone(state), 'fc.weight': torch.ones(2, 64), 'fc.bias': torch.ones(2)}


def starts_the_official_code(state: State) -> dict:
    """Torchvision's under Detectron2's names; its classifier is part of the stem there."""
    theirs = {**of_backbone(to_theirs(state, 'detectron2')), 'stem.fc.weight': torch.ones(2, 64)}
    return {'model': theirs, '__author__': 'torchvision', 'matching_heuristics': True}


def microsofts(state: State) -> State:
    """Return a classifier's file: other names and order, no output norms, a head of its own."""
    theirs = of_backbone(to_theirs(state, 'detectron2'))
    kept = {key: value for key, value in theirs.items() if not key.startswith('norm')}
    return {**kept, 'norm.weight': torch.ones(64), 'head.weight': torch.ones(1000, 64)}


def timms(state: State) -> State:
    """Return timm's file (since 0.9): patch merging at the start of the next stage."""
    moved = microsofts(state)
    for i in (2, 1, 0):
        old, new = (f'layers.{stage}.downsample' for stage in (i, i + 1))
        moved = {key.replace(old, new): value for key, value in moved.items()}
    return moved


def another_models(state: State) -> State:
    others = ('decode_head.conv_seg', 'auxiliary_head.conv_seg', 'neck.conv', 'rpn_head.conv')
    heads = {f'{name}.weight': torch.ones(3) for name in others}
    return {**{f'backbone.{key}': value for key, value in of_backbone(state).items()}, **heads}


def whole_model(layout: str) -> Callable[[State], dict]:
    """The heads in the file are ignored."""
    more = {'criterion.empty_weight': torch.ones(4)} if layout == 'detectron2' else {}
    return lambda state: {'state_dict': {**to_theirs(state, layout), **more}, 'meta': {}}


MAKERS: dict[str, Callable[[State], dict]] = {
    'torchvision': torchvisions,
    'official start': starts_the_official_code,
    'microsoft': microsofts,
    'microsoft, framed': lambda state: {'model': microsofts(state)},
    'timm': timms,
    'bare': of_backbone,
    'another model': another_models,
    **{layout: whole_model(layout) for layout in ('mmseg_m2f', 'mmdet', 'detectron2', 'hf')},
}
OF_RESNETS, OF_SWINS = ('torchvision', 'official start'), ('microsoft', 'microsoft, framed', 'timm')
CASES = [
    (name, makers)
    for name in BACKBONES
    for makers in MAKERS
    if makers not in (OF_SWINS if name == 'resnet' else OF_RESNETS)
]


@pytest.mark.parametrize(('name', 'makers'), CASES)
def test_the_file_of_a_backbone(
    name: str, makers: str, said: list[str], warned: list[str], tmp_path: Path
) -> None:
    source = drawn(BACKBONES[name])
    got = initialized(BACKBONES[name], written(MAKERS[makers](source), tmp_path))
    # A classifier has no norms of the outputs: they start as ones, and nobody needs to know.
    assert not different(got, of_backbone(source), NORMS if makers in OF_SWINS else ())
    assert 'mmdet' in name or not warned  # there MMEngine loads, and warns itself
    assert any(line.startswith('loading the backbone') for line in said)
    if 'microsoft' in makers:
        assert any("the layout of Microsoft's Swin: converted" in line for line in said)


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
    message = r'init_cfg is not of this backbone \(less than 95% match\).*--min-matched'
    with pytest.raises(CheckpointError, match=message):
        initialized(backbone, file)


def test_what_stays_as_drawn_is_a_warning(warned: list[str], tmp_path: Path) -> None:
    source = drawn(swin())
    with load_rules(min_matched=0):
        got = initialized(swin(depths=[1, 1, 3, 1]), written(microsofts(source), tmp_path))
    key = 'stages.2.blocks.0.attn.w_msa.qkv.weight'
    assert torch.equal(got[key], source[f'backbone.{key}'])
    assert any('missing: backbone.stages.2.blocks.1' in line for line in warned)
    state = {**torchvisions(drawn(resnet())), 'conv1.weight': torch.ones(8, 4, 7, 7)}
    initialized(resnet(), written(state, tmp_path))
    assert any('missing: backbone.conv1.weight (8x4x7x7 for' in line for line in warned)


def test_a_prefix(tmp_path: Path) -> None:
    """MMEngine takes it off before anything of ours sees the names."""
    source = drawn(resnet())
    file = written(to_theirs(source, 'detectron2'), tmp_path)
    assert not different(initialized(resnet(), file, prefix='backbone.'), of_backbone(source))


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
@pytest.mark.parametrize('makers', ['microsoft', 'mmseg_m2f', 'detectron2', 'hf'])
def test_another_window(scope: str, makers: str, warned: list[str], tmp_path: Path) -> None:
    source = drawn(swin())
    got = initialized(swin(scope, window_size=4), written(MAKERS[makers](source), tmp_path))
    source = of_backbone(source)
    leave_out = (*(NORMS if makers == 'microsoft' else ()), 'relative_position')
    assert not different(got, source, leave_out)
    for name in (key for key in got if key.endswith('bias_table')):
        torch.testing.assert_close(got[name], resize_window(source[name], 49))
    fresh = build(swin(window_size=4)).backbone.state_dict()
    assert all(torch.equal(got[key], fresh[key]) for key in got if key.endswith('index'))
    assert sum('other windows in its Swin' in line for line in warned) == 1


def test_a_conversion_for_another_window(said: list[str], tmp_path: Path) -> None:
    source = drawn(swin())
    model = {**segmentor(), 'backbone': swin(window_size=4)}
    config, out = Config({'model': model, 'default_scope': 'mmseg'}), tmp_path / 'out.pth'
    convert_checkpoint(written(microsofts(source), tmp_path), out, config)
    assert any('other windows in its Swin' in line for line in said)
    # The file keeps its own window, as it keeps its queries.
    table = 'backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table'
    assert torch.equal(torch.load(out)['state_dict'][table], source[table])
    initialized(swin(window_size=4), out)


def test_mmdets_swin_alone(tmp_path: Path) -> None:
    """A copy initializes itself; a file without weights is named; without our head it is stock."""
    source = drawn(swin())
    init = ConfigDict(type='Pretrained', checkpoint=str(written(timms(source), tmp_path)))
    original = build(swin('mmdet', init_cfg=init))
    before, twin = deepcopy(original.state_dict()), deepcopy(original)
    twin.init_weights()
    assert not different(twin.backbone.state_dict(), of_backbone(source), NORMS)
    assert not different(original.state_dict(), before)
    init_default_scope('mmdet')
    with pytest.raises(IndexError):
        MODELS.build(swin('mmdet', init_cfg=init)).init_weights()
    with pytest.raises(CheckpointError, match=r'file\.pth of init_cfg holds no weights'):
        initialized(swin('mmdet'), written({'epoch': 3}, tmp_path))
