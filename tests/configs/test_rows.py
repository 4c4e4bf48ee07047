"""What every published row must be, and that each trains and tests in its reduced form."""

import ast
import json
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

pytest.importorskip('mmseg')
from mmseg.registry import MODELS

from tests.configs.rows import (
    CONFIGS,
    ONE_PER_FAMILY,
    RECORD,
    REPOSITORY,
    ROWS,
    digest,
    load,
)
from tests.reduced import reduce_config, train_and_test

CUSTOM = CONFIGS / 'custom/mask2former_r50_custom.py'
# Millions of parameters as published (arXiv:2112.01527, tables of semantic segmentation).
PARAMETERS = {'r50': 44, 'r101': 63, 'swin-t': 47, 'swin-s': 69, 'swin-b': 107, 'swin-l': 215}
# Who may set which key; a recipe puts them together.
OWNERS = {
    'backbones': {'preset_backbone', 'preset_in_channels'},
    'tasks': {'model', 'tta_model'},
    'datasets': {
        'dataset_type',
        'data_root',
        'short_side',
        'crop_size',
        'train_pipeline',
        'test_pipeline',
        'tta_pipeline',
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'val_evaluator',
        'test_evaluator',
    },
    'schedules': {
        'optim_wrapper',
        'auto_scale_lr',
        'param_scheduler',
        'train_cfg',
        'val_cfg',
        'test_cfg',
    },
    'recipes': {'model', 'default_hooks'},
}

# mmseg's hook warns whenever no picture is drawn.
quiet_run = pytest.mark.filterwarnings('ignore:The draw is False')


def settings(path: Path) -> set[str]:
    """The keys a file itself sets."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets}
        elif isinstance(node, ast.Delete):
            names -= {target.id for target in node.targets}
    return names - {'_base_'}


def bases(path: Path) -> list[Path]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            names = value if isinstance(value, list) else [value]
            return [(path.parent / name).resolve() for name in names]
    return []


@contextmanager
def no_initialisation():
    """Weights stay as allocated: a large model is built in no time."""
    with ExitStack() as stack:
        for name in dir(torch.nn.init):
            if name.endswith('_') and not name.startswith('_'):
                stack.enter_context(
                    mock.patch.object(torch.nn.init, name, lambda tensor, *_, **__: tensor)
                )
        yield


def build(row: str) -> torch.nn.Module:
    init_default_scope('mmseg')
    with no_initialisation():
        return MODELS.build(load(row).model.to_dict()).eval()


@pytest.mark.parametrize('row', ROWS)
def test_a_row_is_one_recipe_and_one_backbone(row):
    path = CONFIGS / f'{row}.py'
    assert [base.parent.name for base in bases(path)] == ['recipes', 'backbones']
    assert settings(path) == {'model'}
    recipe = bases(path)[0].stem
    assert recipe.endswith('_mmseg') == row.endswith('_mmseg')
    assert recipe.split('-')[0].removesuffix('_mmseg') in row


def test_each_key_has_one_owner():
    for path in CONFIGS.glob('_base_/*/*.py'):
        assert settings(path) <= OWNERS[path.parent.name], path


def test_basenames_are_unique():
    # mim finds a configuration by its basename.
    names = [path.name for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts]
    assert len(names) == len(set(names))
    parts = {path.name for path in CONFIGS.glob('_base_/**/*.py')}
    assert not parts & set(names)


@pytest.mark.parametrize('row', ROWS)
def test_the_first_line_states_number_source_and_hardware(row):
    doc = ast.get_docstring(ast.parse((CONFIGS / f'{row}.py').read_text()))
    first = doc.splitlines()[0]
    who = 'MMSegmentation' if row.endswith('_mmseg') else 'the authors'
    result = metafile_models()[row]['Results'][0]
    assert f'on {result["Dataset"]}: {result["Metrics"]["mIoU"]} mIoU' in first.replace('0 m', ' m')
    assert f'published by {who}' in first
    assert f'{load(row).train_cfg.max_iters // 1000}k iterations' in first
    assert 'reproduce' not in doc


def metafile_models() -> dict[str, dict]:
    index = yaml.safe_load((REPOSITORY / 'model-index.yml').read_text())
    models = [
        model
        for path in index['Import']
        for model in yaml.safe_load((REPOSITORY / path).read_text())['Models']
    ]
    return {model['Name']: model for model in models}


def test_the_metafile_lists_every_row_and_nothing_else():
    models = metafile_models()
    assert sorted(models) == ROWS
    for name, model in models.items():
        assert model['Config'] == f'configs/{name}.py'
        cfg = load(name)
        assert model['Metadata']['Iterations'] == cfg.train_cfg.max_iters
        assert model['Metadata']['Batch Size'] == cfg.auto_scale_lr.base_batch_size


@pytest.mark.parametrize('row', ROWS)
def test_the_head_holds_only_what_differs(row):
    head = load(row).model.decode_head
    assert set(head) == {'type', 'num_classes', 'in_channels'}
    assert head.num_classes == (150 if 'ade20k' in row else 19)


@pytest.mark.parametrize('row', ROWS)
def test_builds_with_the_published_size_and_the_backbone_s_channels(row):
    cfg, model = load(row), build(row)
    name = row.split('_')[1]
    published = PARAMETERS[name.removesuffix('-in1k').removesuffix('-in22k')]
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == published
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == list(cfg.model.decode_head.in_channels)
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]


def test_digests_are_as_recorded():
    changed = {
        row
        for row, recorded in json.loads(RECORD.read_text()).items()
        if row not in ROWS or digest(load(row)) != recorded
    }
    assert not changed, 'if these rows were meant to change: python -m tests.configs.rows'
    assert sorted(json.loads(RECORD.read_text())) == ROWS


@pytest.mark.parametrize(
    'row', [pytest.param(r, marks=[] if r in ONE_PER_FAMILY else pytest.mark.long) for r in ROWS]
)
@quiet_run
def test_the_reduced_row_trains_and_tests(row, tmp_path):
    cfg = load(row)
    reduced = reduce_config(cfg, tmp_path)
    assert types(reduced.model) == types(cfg.model)
    assert types(reduced.train_dataloader) == types(cfg.train_dataloader)
    assert 'mIoU' in train_and_test(reduced)
    assert Path(reduced.work_dir, 'iter_2.pth').exists()


def types(node) -> list[str]:
    """All ``type`` values in order, but for the weights the reduced row cannot load."""
    if isinstance(node, dict):
        own = [node['type']] if 'type' in node else []
        return own + [t for key in sorted(node) if key != 'init_cfg' for t in types(node[key])]
    return [t for value in node for t in types(value)] if isinstance(node, list | tuple) else []


@quiet_run
def test_a_reduced_row_tests_with_augmentation(tmp_path):
    cfg = reduce_config(load('mask2former_r50_ade20k'), tmp_path)
    cfg.model = {**cfg.tta_model, 'module': cfg.model}
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    assert 'mIoU' in Runner.from_cfg(cfg).test()


@quiet_run
def test_the_custom_example_is_short_and_trains(tmp_path):
    lines = ast.unparse(ast.parse(CUSTOM.read_text()).body[1:]).splitlines()
    code = [line for line in CUSTOM.read_text().split('"""')[2].splitlines() if line.strip()]
    assert max(len(lines), len(code)) <= 12
    assert [base.stem for base in bases(CUSTOM)] == ['mask2former_r50_ade20k']
    cfg = Config.fromfile(CUSTOM)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert not loader.dataset.get('reduce_zero_label', False)
        assert (REPOSITORY / loader.dataset.data_root).is_dir()
    assert cfg.model.decode_head.num_classes == 11
    assert 'mIoU' in train_and_test(reduce_config(cfg, tmp_path))


def test_classes_of_the_examples_are_those_of_the_data():
    listed = json.loads((REPOSITORY / 'data/tiny/facade/classes.json').read_text())['classes']
    names, colors = [c['name'] for c in listed], [c['color'] for c in listed]
    for path in [CUSTOM, *CONFIGS.glob('demo/*.py')]:
        cfg = Config.fromfile(path)
        metainfo = cfg.train_dataloader.dataset.metainfo
        assert list(metainfo.classes) == names
        assert metainfo.get('palette', colors) == colors
        assert cfg.model.decode_head.num_classes == len(names)
