"""Checkpoints of any known layout load into our models, and wrong ones say what is wrong."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.apis import inference_model, init_model, show_result_pyplot
from torch import Tensor, nn

import mmseg_m2f.adapters  # noqa: F401 - the hook
from mmseg_m2f.adapters.checkpoints.convert_file import SUFFIXES, convert_checkpoint
from mmseg_m2f.adapters.checkpoints.convert_on_load import check_resumable
from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.checkpoints.rules import LoadRules, load_rules
from mmseg_m2f.checkpoints import resize_window, to_theirs
from tests.adapters.small_models import build, detector, segmentor

State = dict[str, Tensor]
FOREIGN = ('detectron2', 'mmdet', 'mmseg', 'hf')


@pytest.fixture
def source() -> nn.Module:
    return build()


def write(state: State, layout: str, folder: Path) -> Path:
    torch.save(state, folder / 'ours.pth')
    path = folder / f'theirs{SUFFIXES[layout]}'
    convert_checkpoint(folder / 'ours.pth', path, target=layout)
    return path


def with_prefix(state: State, prefix: str = 'module.') -> State:
    return {prefix + key: value for key, value in state.items()}


def of_backbone(state: State) -> State:
    return {key: value for key, value in state.items() if key.startswith('backbone.')}


def assert_same(model: nn.Module, state: State) -> None:
    got = model.state_dict()
    assert got.keys() == state.keys()
    for key, value in state.items():
        assert 'num_batches_tracked' in key or torch.equal(got[key], value), key


@pytest.mark.parametrize('layout', FOREIGN)
def test_stock_loading_takes_foreign_files(
    source: nn.Module, said: list[str], tmp_path: Path, layout: str
) -> None:
    """Through MMEngine, and through torch, which leaves the caller's dict alone."""
    state = source.state_dict()
    model = build()
    load_checkpoint(model, str(write(state, layout, tmp_path)), map_location='cpu', strict=True)
    assert_same(model, state)
    assert 'converted for decode_head' in said[-2]
    assert said[-1].startswith('loading the checkpoint: all tensors matched: backbone ')
    theirs = to_theirs(state, layout)
    without_first_name = {key.removeprefix('model.'): value for key, value in theirs.items()}
    for weights in (theirs, without_first_name):
        before, model = dict(weights), build()
        model.load_state_dict(weights)
        assert_same(model, state)
        assert weights.keys() == before.keys()


def test_mmseg_draws_the_classes_of_a_folder_of_huggingface(
    source: nn.Module, tmp_path: Path
) -> None:
    meta = {'dataset_meta': {'classes': ('wall', 'sky', 'car')}}
    torch.save({'state_dict': source.state_dict(), 'meta': meta}, tmp_path / 'in.pth')
    folder, converted = tmp_path / 'hf', tmp_path / 'out.pth'
    convert_checkpoint(tmp_path / 'in.pth', folder / 'model.safetensors', target='hf')
    convert_checkpoint(folder, converted)
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'PackSegInputs'}]
    config = Config({'model': segmentor(), 'test_pipeline': pipeline})
    image = np.zeros((64, 64, 3), np.uint8)
    for path in (folder, converted):
        model = init_model(config, str(path), device='cpu')
        assert list(model.dataset_meta['classes']) == ['wall', 'sky', 'car']
        assert len({tuple(color) for color in model.dataset_meta['palette']}) == 3
        result = inference_model(model, image)
        options = {'show': False, 'with_labels': False, 'save_dir': str(tmp_path)}
        assert show_result_pyplot(model, image, result, **options).any()


def test_own_checkpoints_load_as_before(
    source: nn.Module, said: list[str], warned: list[str]
) -> None:
    """Silent but for one line; what is missing is a warning."""
    model, state = build(), source.state_dict()
    model.load_state_dict(state)
    assert_same(model, state)
    assert said == [
        'loading the checkpoint: all tensors matched: backbone 100, pixel_decoder 37, decoder 41, '
        'heads 8'
    ]
    assert not warned
    del state['decode_head.decoder.query_feat.weight']
    source.load_state_dict(state, strict=False)
    assert len(warned) == 1
    rows = [line.split() for line in warned[0].splitlines()]
    assert ['decoder', '40', '0', '1', '0'] in rows
    assert 'decoder: 40 of 41 tensors match; missing: decode_head.decoder.query_feat' in warned[0]


def test_init_detector_of_mmdet(tmp_path: Path) -> None:
    apis = pytest.importorskip('mmdet.apis')
    config = Config({'model': detector()})
    init_default_scope('mmdet')
    source = MODELS.build(detector())
    for layout in ('detectron2', 'hf'):
        path = write(source.state_dict(), layout, tmp_path)
        with pytest.warns(UserWarning, match='class names are not saved'):
            model = apis.init_detector(config, str(path), device='cpu', palette='coco')
        assert_same(model, source.state_dict())


def test_wrapped_and_copied_models(source: nn.Module, tmp_path: Path) -> None:
    """DataParallel, an averaged copy, and the prefix that both put before the names."""
    state = source.state_dict()
    parallel = nn.DataParallel(build())
    load_checkpoint(parallel, str(write(state, 'detectron2', tmp_path)))
    assert_same(parallel.module, state)
    for theirs in (state, to_theirs(state, 'detectron2')):
        average = ExponentialMovingAverage(build())
        average.load_state_dict({'steps': torch.tensor(3), **with_prefix(theirs)})
        assert_same(average.module, state)
    twin = copy.deepcopy(build())  # has the hook of its own
    twin.load_state_dict(to_theirs(state, 'mmdet'))
    assert_same(twin, state)


@pytest.mark.parametrize('prefix', ['_orig_mod.', 'module._orig_mod.', 'model.'])
def test_a_prefix_of_all_names_is_taken_off(
    source: nn.Module, said: list[str], prefix: str
) -> None:
    """``torch.compile``, DataParallel around it, and Lightning put it there."""
    for layout in ('mmseg_m2f', 'detectron2', 'hf'):
        model = build()
        model.load_state_dict(with_prefix(to_theirs(source.state_dict(), layout), prefix))
        assert_same(model, source.state_dict())
    taken_off = f'all names of the checkpoint begin with {prefix}, which was taken off'
    assert said.count(taken_off) == 3


def test_other_models_are_left_alone(said: list[str]) -> None:
    other = nn.Module()
    other.decode_head = nn.Linear(1, 1)
    result = other.load_state_dict({'sem_seg_head.x': torch.ones(1)}, strict=False)
    assert result.unexpected_keys == ['sem_seg_head.x']
    assert not said


@pytest.mark.parametrize('number', [50, 300])
@pytest.mark.parametrize('layout', ['mmseg_m2f', 'detectron2'])
def test_other_numbers_of_queries(said: list[str], layout: str, number: int) -> None:
    """Both processes of a training get the same new rows, and their random state stays."""
    source = build(num_queries=100)
    models = [build(num_queries=number) for _ in range(2)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        random = torch.get_rng_state()
        model.load_state_dict(to_theirs(source.state_dict(), layout))
        assert torch.equal(torch.get_rng_state(), random)
    assert_same(models[0], models[1].state_dict())
    kept = min(number, 100)
    for name in ('query_feat', 'query_embed'):
        rows, old = (
            model.decode_head.decoder.get_submodule(name).weight for model in (models[0], source)
        )
        assert torch.equal(rows[:kept], old[:kept])
        assert len(rows.unique(dim=0)) == number
    assert any(f'has 100 queries, the model {number}' in line for line in said)
    row = next(line for line in said[-1].splitlines() if line.startswith('decoder'))
    assert row.split()[2:] == ['2', '0', '0']


@pytest.mark.parametrize('number', [2, 7])
def test_other_numbers_of_classes(source: nn.Module, said: list[str], number: int) -> None:
    """A training may start from them; a test refuses them."""
    model = build(num_classes=number)
    before, theirs = copy.deepcopy(model.state_dict()), to_theirs(source.state_dict(), 'hf')
    message = rf'has 3 classes, the model {number}.*config of the data set'
    with load_rules(other_classes=False), pytest.raises(CheckpointError, match=message):
        model.load_state_dict(theirs)
    assert_same(model, before)
    model.load_state_dict(theirs)
    rows, old = (part.decode_head.decoder.class_embed.weight for part in (model, source))
    kept = min(number, 3)
    assert torch.equal(rows[:kept], old[:kept])
    assert torch.equal(rows[-1], old[-1])
    assert any(f'has 3 classes, the model {number}' in line for line in said)


def test_another_window_of_swin(said: list[str]) -> None:
    def with_window(side: int) -> nn.Module:
        swin = {'type': 'SwinTransformer', 'embed_dims': 8, 'depths': [1] * 4, 'window_size': side}
        init_default_scope('mmseg')
        return MODELS.build({**segmentor(), 'backbone': {**swin, 'num_heads': [1, 2, 4, 8]}})

    source, model = with_window(7), with_window(4)
    model.load_state_dict(source.state_dict())
    assert any('other windows in its Swin' in line for line in said)
    table = 'backbone.stages.2.blocks.0.attn.w_msa.relative_position_bias_table'
    assert torch.equal(model.state_dict()[table], resize_window(source.state_dict()[table], 49))


@pytest.mark.parametrize(
    ('changes', 'wrong'),
    [
        ({'depth': 34}, r'backbone: \d+ of \d+ tensors match; missing: backbone\.layer1'),
        (
            {'depth': 50},
            r'backbone: .*missing: .*backbone\.layer1\.0\.conv1\.weight \(8x8x3x3 for 8x8x1x1\)',
        ),
        ({'num_layers': 4}, r'decoder: .*missing: decode_head\.decoder\.layers\.2'),
    ],
    ids=['deeper', 'other blocks', 'more layers'],
)
@pytest.mark.parametrize('layout', ['mmseg_m2f', 'detectron2'])
def test_another_architecture(source: nn.Module, layout: str, changes: dict, wrong: str) -> None:
    model = build(**changes)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=f'another architecture.*{wrong}.*--min-matched'):
        model.load_state_dict(to_theirs(source.state_dict(), layout), strict=False)
    assert_same(model, before)


def test_a_deeper_backbone_is_another_architecture(source: nn.Module) -> None:
    """All tensors of the model are found, and a third of the checkpoint is not used."""
    deeper = build(depth=34).state_dict()
    with pytest.raises(CheckpointError, match=r'unexpected: backbone\.layer'):
        source.load_state_dict(deeper, strict=False)
    with pytest.raises(ValueError, match='between 0 and 1, got 95'):
        LoadRules(min_matched=95)
    with load_rules(min_matched=0.4):
        source.load_state_dict(deeper, strict=False)
    assert torch.equal(source.backbone.conv1.weight, deeper['backbone.conv1.weight'])
    # Whatever fits is loaded where no bound is set.
    deeper['decode_head.decoder.norm.weight'] = torch.ones(7)
    deeper['backbone.conv1.weight'] += 1
    with load_rules(min_matched=0):
        source.load_state_dict(deeper, strict=False)
    assert torch.equal(source.backbone.conv1.weight, deeper['backbone.conv1.weight'])


def test_a_backbone_alone(source: nn.Module, said: list[str]) -> None:
    other = build()
    backbone = of_backbone(other.state_dict())
    bare = {key.removeprefix('backbone.'): value for key, value in backbone.items()}
    for part in (backbone, bare):
        with pytest.raises(CheckpointError, match=r"only \['backbone'\].*checkpoint=FILE\)"):
            source.load_state_dict(part, strict=False)
        with load_rules(min_matched=0):
            source.load_state_dict(part, strict=False)
    assert torch.equal(source.backbone.conv1.weight, other.backbone.conv1.weight)
    assert any(line.split()[:2] == ['pixel_decoder', '0'] for line in said[-1].splitlines())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda state: {**of_backbone(state), 'decode_head.conv_seg.weight': torch.ones(3)},
            r'cannot be converted: .* of no Mask2Former.*sem_seg_head\.',
        ),
        (
            lambda state: {**of_backbone(state), 'rpn_head.conv.weight': torch.ones(1)},
            r"no head of a Mask2Former, only \['backbone', 'rpn_head'\]",
        ),
        (
            lambda state: {
                k: v for k, v in to_theirs(state, 'hf').items() if '1.self_attn.k' not in k
            },
            r'cannot be converted.*k_proj',
        ),
    ],
    ids=['another head', 'a detector', 'a part is missing'],
)
def test_files_without_our_model(
    source: nn.Module, change: Callable[[State], State], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        source.load_state_dict(change(source.state_dict()), strict=False)


def test_only_a_run_of_such_a_model_is_resumed(source: nn.Module) -> None:
    """A run of another project has an optimizer state too, but for other parameters."""
    run = {'meta': {'epoch': 0, 'iter': 2}, 'message_hub': {}, 'optimizer': {}}
    own = source.state_dict()
    theirs = to_theirs(own, 'mmdet')
    for state in (own, with_prefix(own)):
        check_resumable(source, {**run, 'state_dict': state}, 'own.pth')
    check_resumable(nn.Linear(1, 1), {**run, 'state_dict': {}}, 'of a model without our head')
    message = r'^x\.pth cannot be resumed: .*belongs to another model.*=x'
    with pytest.raises(CheckpointError, match=message):
        check_resumable(source, {**run, 'state_dict': theirs}, 'x.pth')
    for weights in (own, theirs):
        with pytest.raises(CheckpointError, match=r'no optimizer state.*load_from=x\.pth'):
            check_resumable(source, {'state_dict': weights, 'meta': {}}, 'x.pth')
