"""Checkpoint files convert to other projects' and back; a failed conversion leaves no file."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from safetensors import safe_open
from torch import Tensor

import mmseg_m2f.adapters  # noqa: F401 - the loader
from mmseg_m2f.adapters.checkpoints.convert_file import SUFFIXES, convert_checkpoint
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.loader import read_checkpoint
from tests.adapters.small_models import build, detector, segmentor

CLASSES = ('wall', 'sky', 'car')
# Drawing needs colors: classes without any get those of Pascal VOC, black left out.
PALETTE = [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
COLORS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def config(**changes: int) -> Config:
    return Config({'model': segmentor(**changes), 'default_scope': 'mmseg'})


def detector_config(things: list[int]) -> Config:
    pytest.importorskip('mmdet')
    model = detector()
    model['panoptic_head']['thing_ids'] = things
    return Config({'model': model, 'default_scope': 'mmdet'})


@pytest.fixture
def state() -> dict[str, Tensor]:
    return build().state_dict()


@pytest.fixture
def source(state: dict[str, Tensor], tmp_path: Path) -> Path:
    """Write a checkpoint as a training does."""
    path = tmp_path / 'in' / 'iter_2.pth'
    path.parent.mkdir()
    meta = {'dataset_meta': {'classes': CLASSES}, 'cfg': 'a = 1', 'iter': 2}
    torch.save({'state_dict': state, 'meta': meta, 'optimizer': {'state': {}}}, path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / 'new' / 'out'


@pytest.mark.parametrize('target', SUFFIXES)
def test_there_and_back(
    source: Path, state: dict[str, Tensor], out: Path, said: list[str], target: str
) -> None:
    file, back = out.with_suffix(SUFFIXES[target]), out.with_name('back.pth')
    done = convert_checkpoint(source, file, config(), target=target, min_matched=1)
    assert done == ('mmseg_m2f', target, len(read_checkpoint(file)['state_dict']), file)
    keeps_names = target not in ('detectron2', 'hf')
    logged = f'{file.name} has no place for the names of the classes' in said[-1]
    assert logged == (not keeps_names)
    again = convert_checkpoint(file, back, config(), min_matched=1)
    assert again.layout == target
    got = torch.load(back, weights_only=True)
    assert got['state_dict'].keys() == state.keys()
    assert all(torch.equal(got['state_dict'][key], value) for key, value in state.items())
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([file.name, back.name])
    named = {'dataset_meta': {'classes': CLASSES, 'palette': PALETTE}}
    assert got['meta'] == (named if keeps_names else {})


def test_files_are_what_their_projects_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in state.items()
    }
    torch.save({'state_dict': half}, tmp_path / 'half.pth')
    convert_checkpoint(tmp_path / 'half.pth', tmp_path / 'out.pkl', target='detectron2')
    content = pickle.loads((tmp_path / 'out.pkl').read_bytes(), encoding='latin1')
    weights = content.pop('model')
    assert content == {'__author__': 'mmseg_m2f', 'matching_heuristics': True}
    assert {type(value).__name__ for value in weights.values()} == {'ndarray'}
    assert weights['sem_seg_head.predictor.query_feat.weight'].shape == (10, 32)
    first = weights['backbone.stem.conv1.weight']
    assert first.dtype == 'float32'  # NumPy has no bfloat16
    assert torch.equal(torch.from_numpy(first), half['backbone.conv1.weight'].float())
    convert_checkpoint(tmp_path / 'half.pth', tmp_path / 'out.safetensors', target='hf')
    with safe_open(tmp_path / 'out.safetensors', framework='pt') as opened:
        assert opened.metadata() == {'format': 'pt'}
        assert 'class_predictor.weight' in opened.keys()  # noqa: SIM118 - no dict


def test_heads_of_mmdet_and_mmseg(source: Path, out: Path) -> None:
    """Without a config, from one to the other."""
    for target, head_name in (('mmdet', 'panoptic_head'), ('mmseg', 'decode_head')):
        file = out / f'{target}.pth'
        convert_checkpoint(source, file, target=target)
        assert f'{head_name}.cls_embed.weight' in read_checkpoint(file)['state_dict']
        source = file
    convert_checkpoint(source, out / 'ours.pth', config(), min_matched=1)
    with pytest.raises(CheckpointError, match='names are those of mmseg, not of mmseg_m2f'):
        convert_checkpoint(source, out / 'again.pth', source='mmseg_m2f')
    assert not (out / 'again.pth').exists()


@pytest.mark.parametrize('target', ['mmdet', 'mmseg_m2f'])
@pytest.mark.parametrize('things', [[0, 2], [1, 2]])
def test_the_order_of_mmdet_and_back(
    source: Path, out: Path, said: list[str], things: list[int], target: str
) -> None:
    cfg = detector_config(things)
    convert_checkpoint(source, out / 'sorted.pth', cfg, target=target, reorder='things-first')
    convert_checkpoint(out / 'sorted.pth', out / 'ours.pth', cfg, reorder='official')
    assert not any('things first' in line for line in said)
    theirs, back, old = (
        read_checkpoint(path) for path in (out / 'sorted.pth', out / 'ours.pth', source)
    )
    rows = back['state_dict']['panoptic_head.decoder.class_embed.weight']
    assert torch.equal(rows, old['state_dict']['decode_head.decoder.class_embed.weight'])
    # The names go with the rows.
    named = [content['meta']['dataset_meta']['classes'] for content in (theirs, back)]
    others = [index for index in range(3) if index not in things]
    assert named == [[CLASSES[index] for index in [*things, *others]], [*CLASSES]]


def test_the_order_of_mmdet_is_not_taken_for_ours(source: Path, out: Path, said: list[str]) -> None:
    """A file of MMDetection counts the things first, and nothing in it says what they are."""
    mixed, sorted_ones = detector_config([0, 2]), detector_config([0, 1])
    theirs = out / 'mmdet.pth'
    convert_checkpoint(source, theirs, mixed, target='mmdet')
    assert any('--reorder things-first' in line for line in said)
    init_default_scope('mmdet')
    loads = [
        lambda cfg: convert_checkpoint(theirs, out / 'ours.pth', cfg),
        lambda cfg: load_checkpoint(MODELS.build(cfg.model), str(theirs)),
    ]
    for load in loads:
        said.clear()
        load(sorted_ones)
        assert not any('things first' in line for line in said)
        load(mixed)
        assert sum('things first' in line and '--reorder official' in line for line in said) == 1
    with pytest.raises(CheckpointError, match=r'things first already.*reorder official'):
        convert_checkpoint(theirs, out / 'again.pth', mixed, reorder='things-first')
    convert_checkpoint(theirs, out / 'again.pth', sorted_ones, reorder='things-first')


def test_order_of_the_callers(state: dict[str, Tensor], tmp_path: Path, said: list[str]) -> None:
    """Of the names, only what can follow is kept."""
    things = {'thing_classes': ['car'], 'stuff_classes': ['wall', 'sky']}
    meta = {'classes': CLASSES, 'palette': COLORS, 'label_map': {0: 2}, **things}
    torch.save({'state_dict': state, 'meta': {'dataset_meta': meta}}, tmp_path / 'in.pth')
    convert_checkpoint(tmp_path / 'in.pth', tmp_path / 'out.pth', reorder=[2, 0, 1])
    got = torch.load(tmp_path / 'out.pth', weights_only=True)
    key = 'decode_head.decoder.class_embed.bias'
    assert torch.equal(got['state_dict'][key], state[key][[2, 0, 1, 3]])
    moved = {'classes': ['car', 'wall', 'sky'], 'palette': [COLORS[2], *COLORS[:2]]}
    assert got['meta']['dataset_meta'] == {**moved, **things}
    assert any('label_map' in line for line in said)


def test_a_backbone_alone(state: dict[str, Tensor], tmp_path: Path, out: Path) -> None:
    """A classifier becomes a file that every model of OpenMMLab reads."""
    prefix = 'backbone.'
    backbone = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    path, file = tmp_path / 'resnet.pth', out.with_suffix('.pth')
    torch.save({**backbone, 'fc.weight': torch.ones(2, 64), 'fc.bias': torch.ones(2)}, path)
    done = convert_checkpoint(path, file, config(), min_matched=1)
    assert done.layout == 'torchvision'
    model = segmentor()
    init = {'type': 'Pretrained', 'checkpoint': str(file), 'prefix': prefix}
    model['backbone']['init_cfg'] = init
    built = MODELS.build(model)
    built.init_weights()
    got = built.backbone.state_dict()
    assert all(torch.equal(got[key], value) for key, value in backbone.items())
    for target in ('detectron2', 'mmdet'):
        other = out.with_name('other').with_suffix(SUFFIXES[target])
        with pytest.raises(CheckpointError, match=r'a backbone alone can become mmseg_m2f only'):
            convert_checkpoint(path, other, target=target)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_layers': 4}, 'another architecture'),
        ({'ffn_dim': 24}, 'another architecture'),
        ({'num_classes': 5}, 'has 3 classes, the model 5'),
    ],
)
def test_another_model(source: Path, out: Path, changes: dict, message: str) -> None:
    for target in SUFFIXES:
        file = out.with_suffix(SUFFIXES[target])
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint(source, file, config(**changes), target=target)
    assert not out.parent.exists()
    file = out.with_suffix('.pth')
    if 'num_classes' not in changes:
        convert_checkpoint(source, file, config(**changes), min_matched=0)
    convert_checkpoint(source, file, config(num_queries=9))  # keeps the queries that it has
    weights = read_checkpoint(file)['state_dict']
    assert len(weights['decode_head.decoder.query_feat.weight']) == 10


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'state_dict': {'conv_seg.weight': torch.ones(1)}}, 'cannot be converted: .* no Mask2Fo'),
        ({'state_dict': {}}, r"holds no weights: it is a dict with \['state_dict'\]"),
        ({'state_dict': {1: torch.ones(1)}}, 'holds no weights'),
        ({'model': {'backbone.conv1.weight': 3}}, r"holds no weights: .*with \['model'\]\. W"),
        (5, 'holds no weights: it is a int'),
    ],
)
def test_a_file_without_our_weights(
    tmp_path: Path, out: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=rf'other\.pth {message}'):
        convert_checkpoint(tmp_path / 'other.pth', out.with_suffix('.pth'))
    assert not out.parent.exists()


def test_a_write_that_fails_leaves_nothing(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: object, file: object, protocol: int) -> None:
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(pickle, 'dump', fail)
    with pytest.raises(OSError, match='disk full'):
        convert_checkpoint(source, out.with_suffix('.pkl'), target='detectron2')
    assert list(out.parent.iterdir()) == []


FCN = {'type': 'FCNHead', 'in_channels': 64, 'channels': 8, 'num_classes': 3}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'target': 'detectron2'}, r'files of detectron2 end in \.pkl'),
        ({'target': 'caffe'}, 'target must be one of mmseg_m2f, detectron2'),
        ({'source': 'caffe'}, 'source must be one of auto, mmseg_m2f'),
        ({'reorder': 'stuff-first'}, 'reorder must be one of things-first'),
        ({'reorder': 'things-first'}, 'needs a config'),
        ({'config': {}}, 'has no model'),
        ({'config': {'decode_head': FCN}}, 'EncoderDecoder has no head of mmseg_m2f'),
        ({'config': {'backbone': {'type': 'NoSuch'}}}, 'config cannot be built: .*NoSuch'),
        ({'config': {'backbone': {'type': 'ResNet', 'deep': 3}}}, 'cannot be built: .*deep'),
    ],
)
def test_wrong_arguments(source: Path, out: Path, options: dict, message: str) -> None:
    if 'config' in options:
        model = {'model': {**segmentor(), **options['config']}} if options['config'] else {}
        options = {'config': Config({**model, 'default_scope': 'mmseg'})}
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, out.with_suffix('.pth'), **options)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ('meta', 'palette'),
    [
        ({'dataset_meta': {'CLASSES': CLASSES, 'PALETTE': COLORS}}, COLORS),
        ({'dataset_meta': {'CLASSES': CLASSES, 'PALETTE': None}}, PALETTE),
        ({'CLASSES': CLASSES, 'PALETTE': COLORS}, COLORS),
        ({'dataset_meta': {'classes': CLASSES, 'palette': np.array(COLORS)}}, COLORS),
        ({'dataset_meta': {'classes': CLASSES, 'palette': {0: torch.ones(3)}}}, PALETTE),
        ({'dataset_meta': None}, None),
        ({'dataset_meta': 'coco'}, None),
        ({'dataset_meta': {'classes': 'abc'}}, None),
        ({'dataset_meta': {'classes': (1, 2, 3)}}, None),
        (['coco'], None),
    ],
    ids=['upper', 'none', 'old', 'numpy', 'unusable', 'no meta', 'text', 'word', 'numbers', 'list'],
)
def test_names_of_the_classes(
    state: dict[str, Tensor], tmp_path: Path, said: list[str], meta: object, palette: list | None
) -> None:
    path, folder = tmp_path / 'in.pth', tmp_path / 'hf'
    torch.save({'state_dict': state, 'meta': meta}, path)
    convert_checkpoint(path, tmp_path / 'out.pth')
    convert_checkpoint(path, folder / 'model.safetensors', target='hf')
    got = torch.load(tmp_path / 'out.pth', weights_only=True)['meta']
    named = {'dataset_meta': {'classes': CLASSES, 'palette': palette}}
    assert got == (named if palette else {})
    labels = json.loads((folder / 'config.json').read_text())['id2label']
    assert [*labels.values()] == [*(CLASSES if palette else ('LABEL_0', 'LABEL_1', 'LABEL_2'))]
    unusable = any(word in str(meta) for word in ('coco', 'abc', '(1, 2', 'tensor'))
    assert any('left out' in line for line in said) == unusable
