"""The demo's own arithmetic, and with ``-m long`` the demo itself with few iterations."""

import csv
import json
import re
import sys
from types import SimpleNamespace

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
def report(demo):
    return demo.demo_report


@pytest.fixture
def runs(demo):
    return sys.modules['demo_runs']


def test_per_class_table_and_best_constant_by_hand(report, tmp_path):
    """Wall 6 of 8 found, sky 3 of 4, no tree; an ignored pixel beside them."""
    names = ['wall', 'sky', 'tree']
    content = {'classes': [{'name': name} for name in names]}
    (tmp_path / 'classes.json').write_text(json.dumps(content))
    for folder, labels in (('truth', [0] * 8 + [1] * 4), ('predicted', [0] * 6 + [1] * 5 + [0])):
        (tmp_path / folder).mkdir()
        row = np.array([[*labels, 255 if folder == 'truth' else 2]], np.uint8)
        Image.fromarray(row).save(tmp_path / folder / 'a.png')
    dataset = SimpleNamespace(data_root=tmp_path, data_prefix={'seg_map_path': 'truth'})
    table = tmp_path / 'table.csv'
    constant = report.write_per_class(table, dataset, tmp_path / 'predicted')
    # Class 0 everywhere: IoU 8/12 for it and 0 for the other class that occurs.
    assert constant == pytest.approx(8 / 12 / 2)
    assert list(csv.reader(table.read_text().splitlines()))[1:] == [
        ['wall', f'{6 / 9:.4f}', '0.7500', f'{8 / 12:.4f}'],
        ['sky', '0.5000', '0.7500', f'{4 / 12:.4f}'],
        ['tree', 'nan', 'nan', '0.0000'],
    ]


def test_progress_is_read_from_mmengines_lines(runs):
    line = (
        '11/21 09:45:06 - mmengine - INFO - Iter(train) [ 20/700]  base_lr: 4.0e-04 lr: 4.0e-04  '
        'eta: 0:03:51  time: 0.34  data_time: 0.01  loss: 31.2042  decode.loss_cls: 2.1'
    )
    assert runs.ITERATION.search(line).groups() == ('20', '700', '0:03:51', '31.2042')


@pytest.mark.parametrize('name', ['semantic', 'instance', 'panoptic'])
def test_a_missing_library_is_named_with_what_works_without(name, report, monkeypatch):
    assert report.why_not(name) is report.why_no_peer(name, skip=False) is None
    assert report.why_no_peer(name, skip=True) == '--skip-peer was given'
    library = report.TASKS[name].library
    monkeypatch.setattr(report, 'find_spec', lambda module: None if module == library else module)
    reason = report.why_not(name)
    assert f'TASK={name} needs {library}, which is not installed' in reason
    assert [other for other in report.TASKS if report.why_not(other) is None] == re.findall(
        r'\w+', reason.rpartition('TASK=')[2].replace(' or ', ' ')
    )
    # mmseg's head needs mmdet, too.
    without = report.why_no_peer('semantic', skip=False)
    assert without is None if library == 'mmseg' else 'mmdet is not installed' in without


def test_the_summary_shows_what_each_can(report):
    ours = {'mIoU': 0.25, 'PQ': 0.125, 'AP': 0.0625, 'training_minutes': 2.0, 'iterations': 20}
    results = {
        'mask2former': ours,
        'mmdet': {**ours, 'mIoU': None},
        'best_constant_mIoU': 0.032,
        'object_mask_thr': 0.2,
    }
    task = report.TASKS['panoptic']
    lines = [line.split() for line in report.summary(task, results).split('\n')]
    assert lines[0] == ['mIoU', 'PQ', 'AP']
    assert lines[1][4:] == ['0.250', '0.125', '0.062', '2.0', 'minutes,', '20', 'iterations']
    assert lines[2][3:6] == ['cannot', '0.125', '0.062']
    assert lines[3][-1] == '0.032'
    assert lines[4][2:4] == ['object_mask_thr', '0.2']
    results['mmdet'] = {'left_out': 'a reason'}
    assert 'left out: a reason' in report.summary(task, results)


def test_seeds_end_in_means_and_deviations_by_hand(demo, report, tmp_path, monkeypatch):
    given = {0: (0.2, 0.01), 1: (0.3, 0.03), 2: (0.4, 0.02)}

    def demonstrate(name, folder, skip_peer, iterations, seed):
        assert (name, skip_peer, iterations) == ('panoptic', False, 20)
        pq, ap = given[seed]
        run = {'mIoU': 0.5, 'PQ': pq, 'AP': ap, 'training_minutes': 2.0, 'iterations': 20}
        theirs = {**run, 'mIoU': None, 'AP': 0.1 if seed else float('nan'), 'iterations': 10}
        results = {'task': name, 'mask2former': {**run, 'config': 'x.py'}, 'mmdet': theirs}
        folder.mkdir()
        (folder / 'metrics.json').write_text(json.dumps(results))

    monkeypatch.setattr(demo, 'demonstrate', demonstrate)
    demo.demonstrate_seeds('panoptic', tmp_path, False, 20, [0, 1, 2])
    found = json.loads((tmp_path / 'metrics.json').read_text())
    assert found['seeds'] == [0, 1, 2]
    assert found['mask2former']['PQ'] == {'mean': 0.3, 'standard_deviation': 0.1}
    assert found['mask2former']['AP'] == {'mean': 0.02, 'standard_deviation': 0.01}
    assert found['mmdet']['mIoU'] is found['mmdet']['AP'] is None
    lines = report.summary(report.TASKS['panoptic'], found).splitlines()
    assert '0.5000 +- 0.0000' in lines[1]
    assert lines[2].split()[3:5] == ['cannot', '0.3000']
    assert lines[2].endswith('2.0 minutes, 10 iterations')
    left_out = {'left_out': 'a reason'}
    assert report.over_seeds([{'mmdet': left_out}] * 2, ['mmdet']) == {'mmdet': left_out}


def test_a_seed_reaches_both_trainings(runs, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(runs, 'run', lambda command, log: commands.append(command))
    monkeypatch.setattr(runs, 'logged_training', lambda _: [{'iter': 20, 'time': 0.5}])
    runs.train('ours.py', tmp_path, None, 3)
    runs.train_for('theirs.py', tmp_path, 60, 3)
    runs.train('ours.py', tmp_path)
    ours, probe, theirs, without = commands
    assert ours[-2:] == ['--cfg-options', 'randomness.seed=3']
    assert {'randomness.seed=3', 'train_cfg.max_iters=120'} <= set(theirs)
    assert 'train_cfg.max_iters=20' in probe
    assert '--cfg-options' not in without


@pytest.mark.parametrize('seeds', [['3'], ['3', '4', '3']])
def test_seeds_are_two_or_more_different_ones(demo, seeds, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--seeds', *seeds])
    with pytest.raises(SystemExit):
        demo.parse_args()
    assert 'two or more different numbers' in capsys.readouterr().err


def test_a_failing_tool_ends_the_demo_with_the_end_of_its_output(runs, tmp_path):
    with pytest.raises(runs.DemoError, match='unrecognized arguments: --no'):
        runs.run(['tools/train.py', 'x.py', '--no'], tmp_path / 'train.log')


@pytest.mark.parametrize('task', ['panoptic', 'instance'])
def test_the_other_head_is_as_large_and_sees_the_same(task, report):
    """Parameters, queries, images, schedule and thresholds."""
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS
    from mmengine import Config, DefaultScope

    import mmseg_m2f.adapters  # noqa: F401

    chosen = report.TASKS[task]
    configs = [Config.fromfile(ROOT / path) for path in (chosen.config, chosen.peer_config)]
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours, theirs = (MODELS.build(config.model) for config in configs)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    assert ours.panoptic_head.num_queries == theirs.panoptic_head.num_queries
    # Ours is in bfloat16 where the CPU has it; theirs as MMEngine's AMP would be.
    assert [config.optim_wrapper.pop('dtype') for config in configs] == ['auto', 'float16']
    for config in configs:
        config.train_dataloader.dataset.pipeline[-1].pop('layout', None)
    keys = ('optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness')
    for key in (*keys, 'train_dataloader', 'test_dataloader'):
        assert configs[0][key] == configs[1][key], key
    if task == 'panoptic':
        thresholds = [config.model.test_cfg.object_mask_thr for config in configs]
        assert thresholds[0] == thresholds[1]


@pytest.mark.long
@pytest.mark.parametrize(
    ('task', 'panels', 'names'),
    [
        ('semantic', 3, ('mIoU', 'aAcc')),
        ('instance', 3, ('AP', 'AP50')),
        ('panoptic', 5, ('mIoU', 'PQ', 'AP', 'PQ_th', 'PQ_st', 'AP50')),
    ],
)
def test_the_demo_writes_what_it_promises(task, panels, names, tmp_path):
    options = ['--skip-peer'] if task == 'instance' else []
    arguments = ['--task', task, '--iterations', '20', '--work-dir', tmp_path, *options]
    output = run_tool('demo.py', *arguments, cwd=tmp_path)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['task'] == task
    ours = metrics['mask2former']
    assert all(0 <= ours[name] <= 1 for name in names)
    images = list((tmp_path / 'images').glob('*.png'))
    assert len(images) == 12
    with Image.open(images[0]) as image:
        assert image.width == panels * 384
    assert str(tmp_path / 'images') in output
    if task == 'instance':
        assert metrics['mmdet'] == {'left_out': '--skip-peer was given'}
        assert not (tmp_path / 'per_class.csv').exists()
        return
    assert metrics['best_constant_mIoU'] == pytest.approx(0.03, abs=0.02)
    rows = list(csv.DictReader((tmp_path / 'per_class.csv').read_text().splitlines()))
    assert len(rows) == 11
    mean = np.nanmean([float(row['IoU']) for row in rows])
    assert mean == pytest.approx(ours['mIoU'], abs=2e-4)
    if task == 'semantic':
        assert 'mIoU' in metrics['mmseg'] or 'left_out' in metrics['mmseg']
    else:
        assert metrics['mmdet']['mIoU'] is None
        assert 0 <= metrics['mmdet']['PQ'] <= 1
        assert 'cannot' in output
