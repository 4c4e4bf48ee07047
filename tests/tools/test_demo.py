"""The demo's own arithmetic, and with ``-m long`` the demo itself with few iterations."""

import csv
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from tests.tools.conftest import ROOT, TOOLS, run_tool


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import demo

    return demo


@pytest.fixture
def tasks(demo):
    """The module of the table, as the demo has it."""
    return sys.modules['demo_tasks']


@pytest.fixture
def report(demo):
    return sys.modules['demo_report']


def test_confusion_leaves_ignored_pixels_out(report, tmp_path):
    for name, rows in (('truth', [[0, 1], [1, 255]]), ('predicted', [[0, 0], [1, 1]])):
        (tmp_path / name).mkdir()
        Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / name / 'a.png')
    confusion = report.confusion_matrix(tmp_path / 'truth', tmp_path / 'predicted', 2)
    assert confusion.tolist() == [[1, 0], [1, 1]]


def test_per_class_table_and_best_constant_by_hand(report, tmp_path):
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    report.write_per_class(tmp_path / 'table.csv', ['wall', 'sky', 'tree'], confusion)
    with (tmp_path / 'table.csv').open() as file:
        rows = list(csv.reader(file))
    assert rows[1] == ['wall', f'{6 / 9:.4f}', '0.7500', f'{8 / 12:.4f}']
    assert rows[2] == ['sky', '0.5000', '0.7500', f'{4 / 12:.4f}']
    assert rows[3] == ['tree', 'nan', 'nan', '0.0000']
    # Class 0 everywhere: IoU 8/12 for it and 0 for the other class that occurs.
    assert report.best_constant(confusion) == pytest.approx(8 / 12 / 2)


def test_progress_is_read_from_mmengines_lines(demo):
    line = (
        '11/21 09:45:06 - mmengine - INFO - Iter(train) [ 20/700]  base_lr: 4.0e-04 lr: 4.0e-04  '
        'eta: 0:03:51  time: 0.34  data_time: 0.01  loss: 31.2042  decode.loss_cls: 2.1'
    )
    iteration = sys.modules['demo_runs'].ITERATION
    assert iteration.search(line).groups() == ('20', '700', '0:03:51', '31.2042')


@pytest.mark.parametrize('name', ['semantic', 'instance', 'panoptic'])
def test_a_missing_library_is_named_with_what_works_without(name, tasks, monkeypatch):
    assert tasks.why_not(name) is None
    library = tasks.TASKS[name].library
    monkeypatch.setattr(tasks, 'find_spec', lambda module: None if module == library else module)
    reason = tasks.why_not(name)
    assert f'TASK={name} needs {library}, which is not installed' in reason
    assert [other for other in tasks.TASKS if tasks.why_not(other) is None] == re.findall(
        r'\w+', reason.rpartition('TASK=')[2].replace(' or ', ' ')
    )


def test_the_other_head_is_left_out_for_a_stated_reason(tasks, monkeypatch):
    assert tasks.why_no_peer('semantic', skip=True) == '--skip-peer was given'
    monkeypatch.setattr(tasks, 'find_spec', lambda module: None if module == 'mmdet' else module)
    assert 'mmdet is not installed' in tasks.why_no_peer('semantic', skip=False)
    assert tasks.why_not('semantic') is None
    monkeypatch.setattr(tasks, 'find_spec', lambda module: None if module == 'mmseg' else module)
    assert tasks.why_not(tasks.DEFAULT) is tasks.why_no_peer(tasks.DEFAULT, skip=False) is None


def test_the_summary_shows_what_each_can(report, tasks):
    ours = {'mIoU': 0.25, 'PQ': 0.125, 'AP': 0.0625, 'training_minutes': 2.0, 'iterations': 20}
    results = {
        'mask2former': ours,
        'mmdet': {**ours, 'mIoU': None},
        'best_constant_mIoU': 0.032,
        'object_mask_thr': 0.2,
    }
    lines = [line.split() for line in report.summary(tasks.TASKS['panoptic'], results).split('\n')]
    assert lines[0] == ['mIoU', 'PQ', 'AP']
    assert lines[1][4:] == ['0.250', '0.125', '0.062', '2.0', 'minutes,', '20', 'iterations']
    assert lines[2][3:6] == ['cannot', '0.125', '0.062']
    assert lines[3][-1] == '0.032'
    assert lines[4][2:4] == ['object_mask_thr', '0.2']
    results['mmdet'] = {'left_out': 'of a reason'}
    assert 'left out: of a reason' in report.summary(tasks.TASKS['panoptic'], results)


def test_seeds_end_in_means_and_deviations_by_hand(demo, report, tasks, tmp_path, monkeypatch):
    given = {0: (0.2, 0.01, None), 1: (0.3, 0.03, None), 2: (0.4, 0.02, None)}

    def demonstrate(name, folder, skip_peer, iterations, seed):
        assert (name, skip_peer, iterations) == ('panoptic', False, 20)
        pq, ap, miou = given[seed]
        run = {'mIoU': 0.5, 'PQ': pq, 'AP': ap, 'training_minutes': 2.0, 'iterations': 20}
        results = {'task': name, 'mask2former': {**run, 'config': 'x.py'}}
        results['mmdet'] = {**run, 'mIoU': miou, 'iterations': 10}
        folder.mkdir()
        (folder / 'metrics.json').write_text(json.dumps(results))

    monkeypatch.setattr(demo, 'demonstrate', demonstrate)
    demo.demonstrate_seeds('panoptic', tmp_path, False, 20, [0, 1, 2])
    found = json.loads((tmp_path / 'metrics.json').read_text())
    assert found['seeds'] == [0, 1, 2]
    assert found['mask2former']['PQ'] == {'mean': 0.3, 'standard_deviation': 0.1}
    assert found['mask2former']['AP'] == {'mean': 0.02, 'standard_deviation': 0.01}
    assert found['mmdet']['mIoU'] is None
    single = [{'mmdet': {'AP': value}} for value in (0.1, float('nan'))]
    assert report.over_seeds(single, ['mmdet'])['mmdet'] == {'AP': None}
    left_out = {'left_out': 'of a reason'}
    assert report.over_seeds([{'mmdet': left_out}] * 2, ['mmdet']) == {'mmdet': left_out}
    lines = report.summary(tasks.TASKS['panoptic'], found)
    assert '0.5000 +- 0.0000' in lines.splitlines()[1]
    assert lines.splitlines()[2].split()[3:5] == ['cannot', '0.3000']
    assert lines.endswith('2.0 minutes, 10 iterations')


def test_a_seed_reaches_both_trainings(demo, tmp_path, monkeypatch):
    runs, commands = sys.modules['demo_runs'], []
    monkeypatch.setattr(runs, 'run', lambda command, log: commands.append(command))
    monkeypatch.setattr(runs, 'logged_training', lambda _: [{'iter': 20, 'time': 0.5}])
    runs.train('ours.py', tmp_path, None, 3)
    runs.train_for('theirs.py', tmp_path, 60, 3)
    runs.train('ours.py', tmp_path)
    ours, probe, theirs, without = commands
    assert ours[-2:] == ['--cfg-options', 'randomness.seed=3']
    assert 'randomness.seed=3' in theirs
    assert 'train_cfg.max_iters=120' in theirs
    assert 'train_cfg.max_iters=20' in probe
    assert '--cfg-options' not in without


@pytest.mark.parametrize('seeds', [['3'], ['3', '4', '3']])
def test_seeds_are_two_or_more_different_ones(demo, seeds, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--seeds', *seeds])
    with pytest.raises(SystemExit):
        demo.parse_args()
    assert 'two or more different numbers' in capsys.readouterr().err


def test_a_failing_tool_ends_the_demo_with_the_end_of_its_output(demo, tmp_path):
    with pytest.raises(demo.DemoError, match='unrecognized arguments: --no'):
        sys.modules['demo_runs'].run(['tools/train.py', 'x.py', '--no'], tmp_path / 'train.log')


@pytest.mark.parametrize('task', ['panoptic', 'instance'])
def test_the_other_head_is_as_large_and_sees_the_same(task, tasks):
    """Parameters, queries, images, schedule and thresholds."""
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS
    from mmengine import Config, DefaultScope

    import mmseg_m2f.adapters  # noqa: F401

    chosen = tasks.TASKS[task]
    configs = [Config.fromfile(ROOT / path) for path in (chosen.config, chosen.peer_config)]
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours, theirs = (MODELS.build(config.model) for config in configs)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    assert ours.panoptic_head.num_queries == theirs.panoptic_head.num_queries
    # Ours is in bfloat16 where the CPU has it; theirs as MMEngine's AMP would be.
    dtypes = [config.optim_wrapper.pop('dtype') for config in configs]
    assert dtypes == ['auto', 'float16']
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'test_dataloader', 'randomness'):
        assert configs[0][key] == configs[1][key], key
    loaders = [config.train_dataloader.to_dict() for config in configs]
    for loader in loaders:
        loader['dataset']['pipeline'][-1].pop('layout', None)
    assert loaders[0] == loaders[1]
    if task == 'panoptic':
        thresholds = [config.model.test_cfg.object_mask_thr for config in configs]
        assert thresholds[0] == thresholds[1]


@pytest.mark.long
def test_the_semantic_demo_writes_what_it_promises(tmp_path):
    arguments = ['--task', 'semantic', '--iterations', '20', '--work-dir', tmp_path]
    output = run_tool('demo.py', *arguments, cwd=tmp_path)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    check_per_class(tmp_path, metrics)
    check_images(tmp_path, panels=3)
    assert 'mIoU' in metrics['mmseg'] or 'left_out' in metrics['mmseg']
    assert str(tmp_path / 'images') in output


@pytest.mark.long
def test_the_panoptic_demo_answers_all_three_questions(tmp_path):
    output = run_tool('demo.py', '--iterations', '20', '--work-dir', tmp_path, cwd=tmp_path)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['task'] == 'panoptic'
    for name in ('mIoU', 'PQ', 'AP', 'PQ_th', 'PQ_st', 'AP50'):
        assert 0 <= metrics['mask2former'][name] <= 1
    check_per_class(tmp_path, metrics)
    check_images(tmp_path, panels=5)
    assert metrics['mmdet']['mIoU'] is None
    assert 0 <= metrics['mmdet']['PQ'] <= 1
    assert 'cannot' in output


@pytest.mark.long
def test_the_instance_demo_writes_what_it_promises(tmp_path):
    arguments = ['--task', 'instance', '--iterations', '20', '--work-dir', tmp_path]
    run_tool('demo.py', *arguments, '--skip-peer', cwd=tmp_path)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert 0 <= metrics['mask2former']['AP'] <= metrics['mask2former']['AP50'] <= 1
    assert metrics['mmdet'] == {'left_out': '--skip-peer was given'}
    check_images(tmp_path, panels=3)
    assert not (tmp_path / 'per_class.csv').exists()


def check_per_class(folder, metrics):
    assert metrics['best_constant_mIoU'] == pytest.approx(0.03, abs=0.02)
    with (folder / 'per_class.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    mean = np.nanmean([float(row['IoU']) for row in rows])
    assert mean == pytest.approx(metrics['mask2former']['mIoU'], abs=2e-4)


def check_images(folder, panels):
    images = list((folder / 'images').glob('*.png'))
    assert len(images) == 12
    with Image.open(images[0]) as image:
        assert image.width == panels * 384
