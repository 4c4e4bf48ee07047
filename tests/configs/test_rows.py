"""Every published row is in order, its model builds, and the examples train."""

import ast
import json
import re

import pytest
import torch
import yaml
from mmengine import Config
from mmengine.runner import Runner

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from tests.configs.rows import CONFIGS, RECORD, REPOSITORY, ROWS, build, digest, load, parse
from tests.reduced import head_of, reduce_config, train_and_test

CUSTOM = sorted(CONFIGS.glob('custom/*.py'))
# Millions of parameters as published (arXiv:2112.01527, tables of results).
PARAMETERS = {'r50': 44, 'r101': 63, 'swin-t': 47, 'swin-s': 69, 'swin-b': 107, 'swin-l': 215}
# The main metric of a task in the metafile, and how the first line of a row writes it.
MAIN_METRIC = {
    'semantic': ('mIoU', 'mIoU', ''),
    'panoptic': ('PQ', 'PQ', ' panoptic'),
    'instance': ('mask AP', 'AP', ' instances'),
}
# All numbers that the authors publish of a detector, in the order of the metafile.
PUBLISHED = """
r50_coco-panoptic                51.9 41.7 61.7
r101_coco-panoptic               52.6 42.6 62.4
swin-t_coco-panoptic             53.2 43.3 63.2
swin-s_coco-panoptic             54.6 44.7 64.2
swin-b-in1k_coco-panoptic        55.1 45.2 65.1
swin-b-in22k_coco-panoptic       56.4 46.3 67.1
swin-l_coco-panoptic             57.8 48.6 67.4
r50_coco-instance                43.7 30.6
r101_coco-instance               44.2 31.1
swin-t_coco-instance             45.0 31.8
swin-s_coco-instance             46.3 32.9
swin-b-in1k_coco-instance        46.7 33.2
swin-b-in22k_coco-instance       48.1 34.4
swin-l_coco-instance             50.1 36.2
r50_cityscapes-panoptic          62.1 37.3 77.5
r101_cityscapes-panoptic         62.4 37.7 78.6
swin-t_cityscapes-panoptic       63.9 39.1 80.5
swin-s_cityscapes-panoptic       64.8 40.7 81.8
swin-b-in22k_cityscapes-panoptic 66.1 42.8 82.7
swin-l_cityscapes-panoptic       66.6 43.6 82.9
r50_cityscapes-instance          37.4 61.9
r101_cityscapes-instance         38.5 63.9
swin-t_cityscapes-instance       39.7 66.9
swin-s_cityscapes-instance       41.8 70.4
swin-b-in22k_cityscapes-instance 42.0 68.8
swin-l_cityscapes-instance       43.7 71.4
r50_ade20k-panoptic              39.7 26.5 46.1
swin-l_ade20k-panoptic           48.1 34.2 54.5
r50_ade20k-instance              26.4
swin-l_ade20k-instance           34.9
r50_mapillary-panoptic           36.3 50.7
swin-l_mapillary-panoptic        45.5 60.8
"""
NUMBERS = {
    f'mask2former_{name}': [float(number) for number in numbers]
    for name, *numbers in map(str.split, PUBLISHED.strip().splitlines())
}
pytestmark = [
    # mmseg's hook warns whenever no image is drawn.
    pytest.mark.filterwarnings('ignore:The draw is False'),
    # Upstream mmdet's Swin says by a deprecated method that it starts from scratch.
    pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated"),
]


def keys_and_bases(path):
    """The keys that a file sets itself, and its bases. It does nothing but set keys."""
    body = ast.parse(path.read_text()).body
    if isinstance(body[0], ast.Expr):
        body = body[1:]  # the docstring
    assert all(isinstance(node, ast.Assign) for node in body), path
    values = {node.targets[0].id: node.value for node in body}
    bases = ast.literal_eval(values.pop('_base_')) if '_base_' in values else []
    bases = bases if isinstance(bases, list) else [bases]
    return set(values), [(path.parent / base).resolve() for base in bases]


@pytest.mark.parametrize('row', ROWS)
def test_a_row_names_its_model_data_set_schedule_and_runtime(row):
    name, dataset, task, is_mmseg = parse(row)
    keys, bases = keys_and_bases(CONFIGS / f'{row}.py')
    assert keys <= {'model', 'default_hooks'}
    assert [base.parent.name for base in bases] == ['models', 'datasets', 'schedules', '_base_']
    model, data, schedule, runtime = (base.stem for base in bases)
    assert model.startswith(f'mask2former_{name}')
    assert data.startswith(dataset if task == 'semantic' else f'{dataset}-{task}_')
    assert model.endswith(f'_{task}') == (task != 'semantic')
    assert data.endswith('_mmseg') == schedule.endswith('_mmseg') == is_mmseg
    assert runtime == ('default_runtime' if task == 'semantic' else 'default_runtime_det')


def test_each_key_has_one_owner_and_each_file_its_own_name():
    owners = {}
    for path in CONFIGS.glob('_base_/*/*.py'):
        for key in keys_and_bases(path)[0]:
            assert owners.setdefault(key, path.parent) == path.parent, path
    # mim finds a configuration by its basename.
    names = [path.name for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts]
    names += {path.name for path in CONFIGS.glob('_base_/**/*.py')}
    assert len(names) == len(set(names))


def test_the_metafile_and_the_first_line_state_number_source_and_hardware():
    index = yaml.safe_load((REPOSITORY / 'model-index.yml').read_text())
    models = {}
    for path in index['Import']:
        listed = yaml.safe_load((REPOSITORY / path).read_text())['Models']
        models |= {model['Name']: model for model in listed}
    assert sorted(models) == ROWS
    for row, model in models.items():
        cfg, (_, _, task, is_mmseg) = load(row), parse(row)
        (result,), about, iterations = model['Results'], model['Metadata'], cfg.train_cfg.max_iters
        assert model['Config'] == f'configs/{row}.py'
        assert (about['Iterations'], about['Batch Size']) == (iterations, 16)
        assert result['Task'].split()[0].lower() == task
        if task != 'semantic':
            assert list(result['Metrics'].values()) == NUMBERS[row]
        metric, word, suffix = MAIN_METRIC[task]
        source = 'MMSegmentation' if is_mmseg else 'the authors'
        count, gpu, _ = about['Training Resources'].split()
        length = f'{iterations // 1000}k' if iterations % 1000 == 0 else f'{iterations:,}'
        doc = ast.get_docstring(ast.parse((CONFIGS / f'{row}.py').read_text()))
        first = re.fullmatch(
            rf'.+ on {result["Dataset"]}{suffix}: ([\d.]+) {word} published by {source}; '
            rf'{count.removesuffix("x")} {gpu}, {length} iterations\.',
            doc.splitlines()[0],
        )
        assert first, row
        assert float(first[1]) == result['Metrics'][metric], row


# The first row of each backbone in each framework; the others build the same with another K.
FIRST_OF_BACKBONE = {
    (parse(row).backbone, load(row).default_scope): row for row in reversed(ROWS)
}.values()


@pytest.mark.parametrize(
    'row',
    [pytest.param(r, marks=[] if r in FIRST_OF_BACKBONE else pytest.mark.long) for r in ROWS],
)
def test_builds_with_the_published_size_and_the_backbone_s_channels(row):
    cfg = load(row)
    model = build(cfg)
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
    changed = {*json.loads(RECORD.read_text()).items()} ^ {(row, digest(load(row))) for row in ROWS}
    assert not changed, 'if these rows were meant to change: python -m tests.configs.rows'


def test_a_reduced_row_tests_with_augmentation(tmp_path):
    cfg = reduce_config(load('mask2former_r50_ade20k'), tmp_path)
    cfg.model = {**cfg.tta_model, 'module': cfg.model}
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    assert 'mIoU' in Runner.from_cfg(cfg).test()


CUSTOM_ROWS = {
    'mask2former_r50_custom': 'mask2former_r50_ade20k',
    'mask2former_r50_custom-panoptic': 'mask2former_r50_coco-panoptic',
    'mask2former_r50_custom-instance': 'mask2former_r50_coco-instance',
}


@pytest.mark.parametrize('path', CUSTOM, ids=lambda path: path.stem)
def test_a_custom_example_trains(path, tmp_path):
    _, bases = keys_and_bases(path)
    assert [base.stem for base in bases] == [CUSTOM_ROWS[path.stem]]
    cfg = Config.fromfile(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert not loader.dataset.get('reduce_zero_label', False)
        assert (REPOSITORY / loader.dataset.data_root).is_dir()
    assert cfg.default_hooks.checkpoint.save_best in train_and_test(reduce_config(cfg, tmp_path))


def test_semantic_examples_name_the_classes_of_the_data():
    listed = json.loads((REPOSITORY / 'data/tiny/facade/classes.json').read_text())['classes']
    configs = map(Config.fromfile, [*CUSTOM, *CONFIGS.glob('demo/*.py')])
    named = [c.train_dataloader.dataset.metainfo for c in configs if 'decode_head' in c.model]
    assert len(named) == 3
    for metainfo in named:
        assert list(metainfo.classes) == [entry['name'] for entry in listed]
        colors = [entry['color'] for entry in listed]
        assert metainfo.get('palette', colors) == colors
