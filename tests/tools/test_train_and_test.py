"""tools/train.py and tools/test.py as users call them."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine import Config
from PIL import Image

from tests.tools.conftest import ROOT, TOOLS, Trained, run


@pytest.fixture
def load_tool(monkeypatch):
    """Load a tool that can import its neighbors, as when it is run."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda name: SimpleNamespace(**runpy.run_path(str(TOOLS / f'{name}.py')))


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'demo.py', 'convert_checkpoint.py'])
def test_help_is_fast_and_succeeds(tool, tmp_path):
    done = run(sys.executable, '-X', 'importtime', TOOLS / tool, '-h', cwd=tmp_path)
    assert done.returncode == 0
    assert 'usage' in done.stdout
    # These take seconds to import; mim asks every tool for its help before it runs it.
    assert not re.search(r'\| +(torch|mmengine|mmcv|mmseg)$', done.stdout, re.MULTILINE)
    # mim adds --gpus to the command of a tool whose help has the word.
    assert '--gpus' not in done.stdout


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        ('train', ['none.py'], 'config not found: none.py'),
        ('train', ['ROW', '--resume', '--color'], 'unrecognized arguments'),
        ('train', ['ROW', '--resume', 'none.pth'], 'checkpoint to resume from not found'),
        ('train', ['ROW', '--cfg-options', 'a=1', 'b'], 'takes KEY=VALUE pairs'),
        ('test', ['none.py', 'none.pth'], 'config not found: none.py'),
        ('test', ['none.py'], 'required: checkpoint'),
        ('test', ['ROW', 'none.pth'], 'checkpoint not found: none.pth'),
        ('test', ['ROW', __file__, '--format-only'], 'give --out or --show-dir'),
    ],
)
def test_a_mistake_gets_one_sentence(load_tool, row, monkeypatch, capsys, tool, arguments, message):
    filled = [str(row) if argument == 'ROW' else argument for argument in arguments]
    monkeypatch.setattr(sys, 'argv', [tool, *filled])
    with pytest.raises(SystemExit) as stop:
        load_tool(tool).main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_amp_replaces_the_usual_wrappers_and_no_other(load_tool):
    train = load_tool('train')
    for kind in ('OptimWrapper', 'AmpOptimWrapper', 'mmseg_m2f.AmpOptimWrapper'):
        config = Config({'optim_wrapper': {'type': kind, 'clip_grad': {'max_norm': 1}}})
        train.enable_amp(config)
        expected = {'type': 'mmseg_m2f.AmpOptimWrapper', 'clip_grad': {'max_norm': 1}}
        assert config.optim_wrapper == expected
    config = Config({'optim_wrapper': {'type': 'ApexOptimWrapper'}})
    with pytest.raises(train.UsageError, match='ApexOptimWrapper'):
        train.enable_amp(config)


def test_command_line_goes_before_the_config(load_tool, row, tmp_path):
    tool = load_tool('command_line')
    arguments = [str(row), '--work-dir', str(tmp_path), '--local_rank', '3']
    arguments += ['--cfg-options', 'train_cfg.max_iters=7', 'a.b=[1,2]']
    parsed = tool.create_parser('').parse_args(arguments)
    config = tool.load_config(parsed)
    assert config.work_dir == str(tmp_path)
    assert config.train_cfg.max_iters == 7
    assert config.a.b == [1, 2]
    assert parsed.local_rank == 3


def test_sync_bn_gives_way_in_processes_without_gpu(load_tool):
    norm = {'type': 'SyncBN', 'requires_grad': True}
    config = Config({'model': {'backbone': {'norm_cfg': norm}}})
    load_tool('command_line')._replace_sync_bn(config.model)
    assert config.model.backbone.norm_cfg == {'type': 'BN', 'requires_grad': True}


def test_tta_is_for_semantic_models_with_its_settings(load_tool, row, panoptic_row):
    test = load_tool('test')
    config = Config.fromfile(row)
    assert test.has_ground_truth(config)
    test.enable_tta(config)
    assert config.model.type == 'mmseg_m2f.SemanticTTAModel'
    assert 'LoadAnnotations' in str(config.test_dataloader)
    test.drop_ground_truth(config)
    assert 'LoadAnnotations' not in str(config.test_dataloader)
    assert config.test_evaluator == []
    with pytest.raises(test.UsageError, match='tta_model and tta_pipeline'):
        test.enable_tta(Config({'model': {}}))
    with pytest.raises(test.UsageError, match='instances and panoptic segments'):
        test.enable_tta(Config.fromfile(panoptic_row))


@pytest.mark.parametrize(
    ('path', 'saver'),
    [
        ('mmseg_r18_facade', 'SaveLabelMapsHook'),
        ('mmdet_r18_facade-instance', 'SaveResultsHook'),
    ],
)
def test_the_type_of_the_model_decides_what_is_saved(load_tool, path, saver):
    pytest.importorskip('mmdet')
    config = Config.fromfile(ROOT / f'configs/demo/{path}.py')
    load_tool('test').add_hooks(config, 'out', 'shown')
    hooks = [hook['type'] for hook in config.custom_hooks[-2:]]
    assert hooks == [f'mmseg_m2f.{saver}', 'mmseg_m2f.DrawPredictionsHook']


def without_annotations(folder: Path, name: str = 'panoptic_val.json', **more: list) -> Path:
    """Write the validation photos as a test set: images, categories and ``more``."""
    known = json.loads((ROOT / 'data/tiny/facade/annotations' / name).read_text())
    path = folder / 'image_info.json'
    path.write_text(json.dumps({key: known[key] for key in ('images', 'categories')} | more))
    return path


@pytest.mark.parametrize('more', [{}, {'annotations': []}])
@pytest.mark.parametrize('kind', ['panoptic', 'instance'])
def test_a_json_without_annotations_has_no_ground_truth(load_tool, kind, more, tmp_path):
    pytest.importorskip('mmdet')
    from mmengine.registry import DATASETS, DefaultScope

    import mmseg_m2f.adapters  # noqa: F401 - registers ours

    test = load_tool('test')
    config = Config.fromfile(ROOT / f'configs/demo/mask2former_r18_facade-{kind}.py')
    dataset = config.test_dataloader.dataset
    dataset.data_root = str(ROOT / dataset.data_root)
    assert test.has_ground_truth(config)
    dataset.ann_file = str(without_annotations(tmp_path, Path(dataset.ann_file).name, **more))
    assert not test.has_ground_truth(config)
    test.drop_ground_truth(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = DATASETS.build(dataset)
    records = [built.get_data_info(i) for i in range(len(built))]
    assert records
    assert not any(record.get('segments_info') or record.get('instances') for record in records)


def test_training_leaves_a_checkpoint_logs_and_an_eta(trained: Trained, call, tmp_path):
    work_dir = trained.folder / 'work_dirs/row'
    assert 'eta:' in trained.output
    assert (work_dir / 'head_config.json').is_file()
    [scalars] = work_dir.glob('*/vis_data/scalars.json')
    losses = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert [line['iter'] for line in losses if 'loss' in line] == [1, 2]
    # Published weights load plainly.
    published = tmp_path / 'weights.pth'
    call(TOOLS / 'publish_weights.py', trained.checkpoint, published)
    loaded = torch.load(published, weights_only=True)
    saved = torch.load(trained.checkpoint, weights_only=False)  # our own file, just made
    assert loaded['state_dict'].keys() == saved['state_dict'].keys()
    assert 'optimizer' not in loaded
    assert loaded['meta']['head_config']['num_queries'] == 8
    assert len(loaded['meta']['dataset_meta']['classes']) == 150


def test_resume_continues_with_the_next_iteration(trained: Trained, call_runner, tmp_path):
    schedule = ['train_cfg.max_iters=3', 'train_cfg.val_interval=9']
    arguments = ['--resume', trained.checkpoint, trained.config, '--work-dir', tmp_path, '--amp']
    output = call_runner(TOOLS / 'train.py', *arguments, settings=schedule)
    assert 'resumed epoch: 0, iter: 2' in output
    assert (tmp_path / 'iter_3.pth').is_file()
    # Without a value it goes on from the work folder, whatever load_from says.
    schedule = ['train_cfg.max_iters=4', 'train_cfg.val_interval=9']
    arguments = ['--resume', '--work-dir', tmp_path]
    settings = [*schedule, f'load_from={trained.checkpoint}']
    output = call_runner(TOOLS / 'train.py', trained.config, *arguments, settings=settings)
    assert 'resumed epoch: 0, iter: 3' in output


def test_resume_without_a_checkpoint_starts_from_load_from(load_tool, tmp_path, capsys):
    config = Config({'work_dir': str(tmp_path), 'load_from': 'pretrained.pth', 'resume': False})
    load_tool('train').set_resume(config, 'auto')
    assert (config.load_from, config.resume) == ('pretrained.pth', False)
    assert 'no checkpoint' in capsys.readouterr().out


OWN_PARTS = """
_base_ = './row.py'
custom_imports = dict(imports=['mmseg_m2f.adapters', 'custom_parts'])
model = dict(
    decode_head=dict(
        pixel_decoder=dict(_delete_=True, type='TopDownPixelDecoder'),
        matcher=dict(costs=dict(mask=dict(type='L1MaskCost'))),
        losses=dict(mask=dict(type='L1MaskLoss', _delete_=True)),
    )
)
"""


def test_the_documented_parts_of_a_user_train(row, call_runner, tmp_path, monkeypatch):
    """Own loss, cost and pixel decoder, through custom_imports."""
    monkeypatch.syspath_prepend(str(ROOT / 'docs/examples'))
    config = row.with_name('own_parts.py')
    config.write_text(OWN_PARTS)
    output = call_runner(TOOLS / 'train.py', config, '--work-dir', tmp_path)
    assert (tmp_path / 'iter_2.pth').is_file()
    assert 'L1MaskCost does not declare row_wise' in output
    used = json.loads((tmp_path / 'head_config.json').read_text())
    assert used['pixel_decoder']['type'] == 'TopDownPixelDecoder'
    assert used['matcher']['costs']['mask'] == {'type': 'L1MaskCost'}
    assert used['losses']['mask']['type'] == 'L1MaskLoss'


@pytest.fixture
def run_test(call_runner, tmp_path):
    """Run tools/test.py on a trained model, with the results in `out` and `shown`."""

    def run_here(trained: Trained, *options: str, settings=()) -> str:
        arguments = ['--out', 'out', '--show-dir', 'shown', '--work-dir', tmp_path / 'logs']
        files = trained.config, trained.checkpoint
        return call_runner(TOOLS / 'test.py', *files, *options, *arguments, settings=settings)

    return run_here


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def num_panels(folder: Path) -> float:
    """Return how many panels each of the two saved images has."""
    first, second = (read(path).shape[1] for path in folder.iterdir())
    assert first == second
    return first / 384


def test_tta_saves_label_maps_and_images(trained: Trained, run_test, tmp_path):
    assert 'mIoU' in run_test(trained, '--tta')
    photos = sorted((trained.folder / 'images/validation').iterdir())
    assert len(photos) == 2
    for photo in photos:
        label_map = read(tmp_path / 'out' / f'{photo.stem}.png')
        assert label_map.shape == read(photo).shape[:2]
        # ADE20K's files count from 1.
        assert 1 <= label_map.min() <= label_map.max() <= 150
        assert (tmp_path / 'shown' / f'{photo.stem}.png').is_file()
    assert num_panels(tmp_path / 'shown') == 3


def test_images_alone_are_enough(trained: Trained, run_test, tmp_path):
    """A folder of photos without label maps, named by --cfg-options."""
    settings = ["test_dataloader.dataset.data_prefix.seg_map_path=''"]
    assert 'no ground truth' in run_test(trained, settings=settings)
    assert len(list((tmp_path / 'out').iterdir())) == 2
    assert num_panels(tmp_path / 'shown') == 2


# Photo, ground truth if there is any, semantic, instances, panoptic.
@pytest.mark.parametrize(('truth', 'panels'), [('known', 5), ('none', 4), ('left alone', 5)])
def test_one_test_of_a_panoptic_model_answers_three_questions(
    trained_panoptic, run_test, tmp_path, truth, panels
):
    ann_file = f'test_dataloader.dataset.ann_file={without_annotations(tmp_path)}'
    options = ['--format-only'] if truth == 'left alone' else []
    settings = [ann_file] if truth == 'none' else []
    output = run_test(trained_panoptic, *options, settings=settings)
    for name in ('mIoU', 'coco/segm_mAP', 'coco_panoptic/PQ'):
        assert (name in output) == (truth == 'known')
    assert ('no ground truth' in output) == (truth != 'known')
    assert len(json.loads((tmp_path / 'out/panoptic.json').read_text())['annotations']) == 2
    assert (tmp_path / 'out/instances.json').is_file()
    for folder in ('panoptic', 'semantic'):
        assert len(list((tmp_path / 'out' / folder).glob('*.png'))) == 2
    assert num_panels(tmp_path / 'shown') == panels


@pytest.mark.long
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_two_processes(tool, trained: Trained, tmp_path):
    checkpoint = [trained.checkpoint] if tool == 'test' else []
    command = ['bash', TOOLS / f'dist_{tool}.sh', trained.config, *checkpoint, '2']
    done = run(*command, '--work-dir', 'wd', cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert 'GPU number: 2' in done.stdout
