"""Every published row is in order, and trains and tests in its reduced form."""

import ast
import json
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
from mmengine.registry import MODELS

from tests.configs.rows import (
    CONFIGS,
    ONE_DETECTOR_PER_FAMILY,
    ONE_PER_FAMILY,
    RECORD,
    REPOSITORY,
    ROWS,
    digest,
    load,
    metafile_models,
    parse,
)
from tests.reduced import head_of, reduce_config, train_and_test

CUSTOM = sorted(CONFIGS.glob('custom/*.py'))
# Millions of parameters as published (arXiv:2112.01527, tables of results).
PARAMETERS = {'r50': 44, 'r101': 63, 'swin-t': 47, 'swin-s': 69, 'swin-b': 107, 'swin-l': 215}
# The main metric of a task in the metafile, and how the first line of a row writes it.
PUBLISHED = {
    'semantic': ('mIoU', 'mIoU'),
    'panoptic': ('PQ', 'PQ'),
    'instance': ('mask AP', 'AP'),
}
SUFFIXES = {'semantic': '', 'panoptic': ' panoptic', 'instance': ' instances'}
# Metrics that the test of a reduced row must report.
REPORTED = {
    'semantic': {'mIoU'},
    'coco-panoptic': {'coco_panoptic/PQ', 'coco/segm_mAP', 'mIoU'},
    'coco-instance': {'coco/segm_mAP'},
    'cityscapes-panoptic': {'coco_panoptic/PQ', 'cityscapes/AP', 'coco/segm_mAP', 'mIoU'},
    'cityscapes-instance': {'cityscapes/AP', 'coco/segm_mAP'},
    'ade20k-panoptic': {'coco_panoptic/PQ', 'coco/segm_mAP', 'mIoU'},
    'ade20k-instance': {'coco/segm_mAP'},
    'mapillary-panoptic': {'coco_panoptic/PQ', 'mIoU'},
}
# Which part of a row may set which key.
OWNERS = {
    'models': {'model', 'tta_model'},
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
}


def quiet_run(test):
    """Without the warnings of the frameworks in any run."""
    # mmseg's hook warns whenever no image is drawn.
    test = pytest.mark.filterwarnings('ignore:The draw is False')(test)
    # Upstream mmdet's Swin says by a deprecated method that it starts from scratch.
    return pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")(test)


def settings(path: Path) -> set[str]:
    """The keys that a file sets itself. It does nothing but set keys."""
    body = ast.parse(path.read_text()).body
    if body and isinstance(body[0], ast.Expr):
        body = body[1:]  # the docstring
    assert all(isinstance(node, ast.Assign) for node in body), path
    return {node.targets[0].id for node in body} - {'_base_'}


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
    cfg = load(row)
    init_default_scope(cfg.default_scope)
    with no_initialisation():
        return MODELS.build(cfg.model.to_dict()).eval()


@pytest.mark.parametrize('row', ROWS)
def test_a_row_names_its_model_data_set_schedule_and_runtime(row):
    path = CONFIGS / f'{row}.py'
    name, dataset, task, is_mmseg = parse(row)
    model, data, schedule, runtime = bases(path)
    assert [base.parent.name for base in (model, data, schedule, runtime)] == [
        'models',
        'datasets',
        'schedules',
        '_base_',
    ]
    assert settings(path) <= {'model', 'default_hooks'}
    assert model.stem.startswith(f'mask2former_{name}')
    assert data.stem.startswith(dataset if task == 'semantic' else f'{dataset}-{task}_')
    assert model.stem.endswith(f'_{task}') == (task != 'semantic')
    assert data.stem.endswith('_mmseg') == schedule.stem.endswith('_mmseg') == is_mmseg
    assert runtime.stem == ('default_runtime' if task == 'semantic' else 'default_runtime_det')


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
    first, task = doc.splitlines()[0], parse(row).task
    model, (metric, word) = metafile_models()[row], PUBLISHED[task]
    (result,) = model['Results']
    assert result['Task'].split()[0].lower() == task
    assert f' on {result["Dataset"]}{SUFFIXES[task]}: ' in first
    number = re.search(rf'([\d.]+) {word} published', first).group(1)
    assert float(number) == result['Metrics'][metric]
    source = 'MMSegmentation' if row.endswith('_mmseg') else 'the authors'
    assert f'published by {source}; ' in first
    count, gpu, _ = model['Metadata']['Training Resources'].split()
    assert f'; {count.removesuffix("x")} {gpu}, ' in first
    iterations = load(row).train_cfg.max_iters
    count = f'{iterations:,}' if iterations % 1000 else f'{iterations // 1000}k'
    assert first.endswith(f' {count} iterations.')
    assert 'reproduce' not in doc


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
    name, dataset, task, _ = parse(row)
    head = head_of(load(row))
    expected = {'type', 'num_classes'}
    if task == 'panoptic':
        expected.add('thing_ids')
    if task != 'semantic' and name == 'swin-l':
        expected.add('num_queries')
    if dataset == 'mapillary' and task == 'semantic':
        expected.add('ignore_index')
    assert set(head) == expected
    if task == 'semantic':
        assert head.num_classes == {'ade20k': 150, 'cityscapes': 19, 'mapillary': 65}[dataset]


# The first row of each backbone in each framework; the others build the same with another K.
FIRST_OF_BACKBONE = {
    (parse(row).backbone, load(row).default_scope): row for row in reversed(ROWS)
}.values()


@pytest.mark.parametrize(
    'row',
    [pytest.param(r, marks=[] if r in FIRST_OF_BACKBONE else pytest.mark.long) for r in ROWS],
)
def test_builds_with_the_published_size_and_the_backbone_s_channels(row):
    cfg, model = load(row), build(row)
    published = PARAMETERS[parse(row).backbone.removesuffix('-in1k').removesuffix('-in22k')]
    # The models with 200 queries.
    published += head_of(cfg).get('num_queries') == 200
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == published
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 64, 64))
    head = model.panoptic_head if 'panoptic_head' in cfg.model else model.decode_head
    assert [m.shape[1] for m in maps] == list(head.pixel_decoder.in_channels)
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]


def test_digests_are_as_recorded():
    changed = {
        row
        for row, recorded in json.loads(RECORD.read_text()).items()
        if row not in ROWS or digest(load(row)) != recorded
    }
    assert not changed, 'if these rows were meant to change: python -m tests.configs.rows'
    assert sorted(json.loads(RECORD.read_text())) == ROWS


SHORT = {*ONE_PER_FAMILY, *ONE_DETECTOR_PER_FAMILY}


@pytest.mark.parametrize(
    'row', [pytest.param(r, marks=[] if r in SHORT else pytest.mark.long) for r in ROWS]
)
@quiet_run
def test_the_reduced_row_trains_and_tests(row, tmp_path):
    cfg = load(row)
    reduced = reduce_config(cfg, tmp_path)
    assert types(reduced.model) == types(cfg.model)
    assert types(reduced.train_dataloader) == types(cfg.train_dataloader)
    task, dataset = parse(row).task, parse(row).dataset
    reported = REPORTED[task if task == 'semantic' else f'{dataset}-{task}']
    assert reported <= set(train_and_test(reduced))
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


CUSTOM_EXAMPLES = [
    ('mask2former_r50_custom', 'mask2former_r50_ade20k', 'mIoU'),
    ('mask2former_r50_custom-panoptic', 'mask2former_r50_coco-panoptic', 'coco_panoptic/PQ'),
    ('mask2former_r50_custom-instance', 'mask2former_r50_coco-instance', 'coco/segm_mAP'),
]


@pytest.mark.parametrize(('name', 'row', 'metric'), CUSTOM_EXAMPLES)
@quiet_run
def test_a_custom_example_trains(name, row, metric, tmp_path):
    path = CONFIGS / f'custom/{name}.py'
    assert [base.stem for base in bases(path)] == [row]
    cfg = Config.fromfile(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert not loader.dataset.get('reduce_zero_label', False)
        assert (REPOSITORY / loader.dataset.data_root).is_dir()
    assert metric in train_and_test(reduce_config(cfg, tmp_path))


def test_every_custom_example_is_tested():
    assert {path.stem for path in CUSTOM} == {name for name, _, _ in CUSTOM_EXAMPLES}


def test_classes_of_the_examples_are_those_of_the_data():
    listed = json.loads((REPOSITORY / 'data/tiny/facade/classes.json').read_text())['classes']
    things = [entry['index'] for entry in listed if entry['isthing']]
    semantic = []
    for path in [*CUSTOM, *CONFIGS.glob('demo/*.py')]:
        cfg = Config.fromfile(path)
        metainfo = cfg.train_dataloader.dataset.get('metainfo')
        if metainfo is not None:
            semantic.append(path)
            assert list(metainfo.classes) == [entry['name'] for entry in listed]
            colors = [entry['color'] for entry in listed]
            assert metainfo.get('palette', colors) == colors
            assert cfg.model.decode_head.num_classes == len(listed)
        # MMDetection's own head is told numbers of things and stuff.
        elif cfg.model.type == 'mmseg_m2f.Mask2Former':
            head = cfg.model.panoptic_head
            is_panoptic = 'panoptic' in path.stem
            assert head.num_classes == (len(listed) if is_panoptic else len(things))
            assert head.get('thing_ids') == (things if is_panoptic else None)
    assert len(semantic) == 3
