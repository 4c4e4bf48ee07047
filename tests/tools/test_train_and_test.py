"""tools/train.py and tools/test.py as users call them."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from PIL import Image

from tests.tools.conftest import ROOT, TOOLS, Trained, run


@pytest.fixture
def load_tool(monkeypatch):
    """Load a tool as a module that can import its neighbours, as when it is run."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'demo.py', 'convert_checkpoint.py'])
def test_help_is_fast_and_succeeds(tool, tmp_path):
    done = run(sys.executable, '-X', 'importtime', TOOLS / tool, '-h', cwd=tmp_path)
    assert done.returncode == 0
    output = done.stdout
    assert 'usage' in output
    # These take seconds to import; mim asks every tool for its help before it runs it.
    assert not re.search(r'\| +(torch|mmengine|mmcv|mmseg)$', output, re.MULTILINE)
    # mim adds --gpus to the command of a tool whose help has the word.
    assert '--gpus' not in output


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('train.py', 'none.py'), 'config not found: none.py'),
        (('train.py', ROOT / 'setup.py', '--resume', '--color'), 'unrecognized arguments'),
        (('test.py', 'none.py', 'none.pth'), 'config not found: none.py'),
        (('test.py', 'none.py'), 'required: checkpoint'),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message, tmp_path):
    tool, *rest = arguments
    done = run(sys.executable, TOOLS / tool, *rest, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stdout
    assert 'Traceback' not in done.stdout


def test_missing_checkpoints_and_malformed_overrides(load_tool, row, monkeypatch, capsys):
    lines = [
        ('test', [row, 'none.pth'], 'checkpoint not found: none.pth'),
        ('train', [row, '--resume', 'none.pth'], 'checkpoint to resume from not found'),
        ('train', [row, '--cfg-options', 'a=1', 'b'], 'takes KEY=VALUE pairs'),
        ('test', [row, __file__, '--format-only'], 'give --out or --show-dir'),
    ]
    for tool, arguments, message in lines:
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        with pytest.raises(SystemExit):
            load_tool(tool).main()
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
    arguments = [str(row), '--work-dir', str(tmp_path), '--cfg-options', 'train_cfg.max_iters=7']
    config = tool.load_config(tool.create_parser('').parse_args([*arguments, 'a.b=[1,2]']))
    assert config.work_dir == str(tmp_path)
    assert config.train_cfg.max_iters == 7
    assert config.a.b == [1, 2]
    assert tool.create_parser('').parse_args([str(row), '--local_rank', '3']).local_rank == 3


def test_without_ground_truth_nothing_loads_it(load_tool, row):
    test = load_tool('test')
    config = Config.fromfile(row)
    assert test.has_ground_truth(config)
    test.enable_tta(config)
    assert config.model.type == 'mmseg_m2f.SemanticTTAModel'
    assert 'LoadAnnotations' in str(config.test_dataloader)
    test.drop_ground_truth(config)
    assert 'LoadAnnotations' not in str(config.test_dataloader)
    assert config.test_evaluator == []


def test_tta_is_refused_without_its_settings_and_of_a_detector(load_tool, panoptic_row):
    test = load_tool('test')
    with pytest.raises(test.UsageError, match='tta_model and tta_pipeline'):
        test.enable_tta(Config({'model': {}}))
    with pytest.raises(test.UsageError, match='instances and panoptic segments'):
        test.enable_tta(Config.fromfile(panoptic_row))


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        ('mask2former_r18_facade.py', False),
        ('mmseg_r18_facade.py', False),
        ('mask2former_r18_facade-panoptic.py', True),
        ('mmdet_r18_facade-instance.py', True),
    ],
)
def test_the_type_of_the_model_decides_what_is_saved(load_tool, path, expected):
    pytest.importorskip('mmdet' if expected else 'mmseg')
    test = load_tool('test')
    config = Config.fromfile(ROOT / 'configs/demo' / path)
    assert test.is_detector(config) is expected
    test.add_hooks(config, 'out', 'shown')
    saver = 'SaveResultsHook' if expected else 'SaveLabelMapsHook'
    assert [hook['type'] for hook in config.custom_hooks[-2:]] == [
        f'mmseg_m2f.{saver}',
        'mmseg_m2f.DrawPredictionsHook',
    ]


def without_annotations(
    folder: Path, name: str = 'panoptic_val.json', **more: list[object]
) -> Path:
    """Write the validation photos as a test set: images, categories and ``more``."""
    known = json.loads((ROOT / 'data/tiny/facade/annotations' / name).read_text())
    path = folder / 'image_info.json'
    path.write_text(json.dumps({key: known[key] for key in ('images', 'categories')} | more))
    return path


def records_of(config: Config) -> list[dict]:
    """Return the records of the data set that a test would build."""
    from mmengine.registry import DATASETS, DefaultScope

    import mmseg_m2f.adapters  # noqa: F401 - registers ours

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config.test_dataloader.dataset)
        return [dataset.get_data_info(i) for i in range(len(dataset))]


@pytest.mark.parametrize('more', [{}, {'annotations': []}])
@pytest.mark.parametrize('kind', ['panoptic', 'instance'])
def test_a_json_without_annotations_has_no_ground_truth(load_tool, kind, more, tmp_path):
    pytest.importorskip('mmdet')
    test = load_tool('test')
    config = Config.fromfile(ROOT / f'configs/demo/mask2former_r18_facade-{kind}.py')
    dataset = config.test_dataloader.dataset
    dataset.data_root = str(ROOT / dataset.data_root)
    assert test.has_ground_truth(config)
    name = Path(dataset.ann_file).name
    dataset.ann_file = str(without_annotations(tmp_path, name, **more))
    assert not test.has_ground_truth(config)
    test.drop_ground_truth(config)
    records = records_of(config)
    assert records
    assert not any(record.get('segments_info') or record.get('instances') for record in records)


def test_training_leaves_a_checkpoint_logs_and_an_eta(trained: Trained):
    work_dir = trained.folder / 'work_dirs/row'
    assert 'eta:' in trained.output
    assert (work_dir / 'head_config.json').is_file()
    [scalars] = work_dir.glob('*/vis_data/scalars.json')
    losses = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert [line['iter'] for line in losses if 'loss' in line] == [1, 2]


def test_resume_continues_with_the_next_iteration(trained: Trained, call_runner, tmp_path):
    schedule = ['train_cfg.max_iters=3', 'train_cfg.val_interval=9']
    arguments = ['--resume', trained.checkpoint, trained.config, '--work-dir', tmp_path, '--amp']
    output = call_runner(TOOLS / 'train.py', *arguments, settings=schedule)
    assert 'resumed epoch: 0, iter: 2' in output
    assert (tmp_path / 'iter_3.pth').is_file()


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


def num_panels(folder: Path) -> int:
    """The panels of the saved images, of which there are two of equal width."""
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


def test_one_test_of_a_panoptic_model_answers_three_questions(trained_panoptic, run_test, tmp_path):
    output = run_test(trained_panoptic)
    for name in ('mIoU', 'coco/segm_mAP', 'coco_panoptic/PQ'):
        assert name in output
    assert (tmp_path / 'out/panoptic.json').is_file()
    assert (tmp_path / 'out/instances.json').is_file()
    for folder in ('panoptic', 'semantic'):
        assert len(list((tmp_path / 'out' / folder).glob('*.png'))) == 2
    # Photo, ground truth, semantic, instances, panoptic.
    assert num_panels(tmp_path / 'shown') == 5


def test_a_test_set_is_predicted_without_annotations(trained_panoptic, run_test, tmp_path):
    settings = [f'test_dataloader.dataset.ann_file={without_annotations(tmp_path)}']
    assert 'no ground truth' in run_test(trained_panoptic, settings=settings)
    assert len(json.loads((tmp_path / 'out/panoptic.json').read_text())['annotations']) == 2
    assert num_panels(tmp_path / 'shown') == 4


def test_known_annotations_can_be_left_alone(load_tool, panoptic_row, tmp_path):
    """--format-only where the JSON has annotations: predictions and no metric."""
    test = load_tool('test')
    checkpoint = tmp_path / 'weights.pth'
    checkpoint.touch()
    config = Config.fromfile(panoptic_row)
    assert test.has_ground_truth(config)
    arguments = [str(panoptic_row), str(checkpoint), '--out', 'out', '--format-only']
    test.apply_options(config, test.create_test_parser().parse_args(arguments))
    assert config.test_evaluator == []
    assert config.custom_hooks[-1] == {'type': 'mmseg_m2f.SaveResultsHook', 'out_dir': 'out'}


def test_sync_bn_gives_way_in_processes_without_gpu(load_tool):
    config = Config(
        {'model': {'backbone': {'norm_cfg': {'type': 'SyncBN', 'requires_grad': True}}}}
    )
    load_tool('command_line')._replace_sync_bn(config.model)
    assert config.model.backbone.norm_cfg == {'type': 'BN', 'requires_grad': True}


@pytest.mark.long
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_two_processes(tool, trained: Trained, tmp_path):
    script = TOOLS / f'dist_{tool}.sh'
    checkpoint = [trained.checkpoint] if tool == 'test' else []
    done = run('bash', script, trained.config, *checkpoint, 2, '--work-dir', 'wd', cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert 'GPU number: 2' in done.stdout


def test_published_weights_load_plainly(trained: Trained, call, tmp_path):
    published = tmp_path / 'weights.pth'
    call(TOOLS / 'publish_weights.py', trained.checkpoint, published)
    loaded = torch.load(published, weights_only=True)
    saved = torch.load(trained.checkpoint, weights_only=False)  # our own file, just made
    assert loaded['state_dict'].keys() == saved['state_dict'].keys()
    assert 'optimizer' not in loaded
    assert loaded['meta']['head_config']['num_queries'] == 8
    assert len(loaded['meta']['dataset_meta']['classes']) == 150
