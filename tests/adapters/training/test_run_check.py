"""A run stops before it starts if its data, head and metrics do not fit together."""

import itertools

import pytest
from mmengine.hooks import Hook

from mmseg_m2f import core
from mmseg_m2f.adapters.data import PanopticDataset
from tests.adapters.metrics.evaluation_scenes import ANN_FILE, COCO
from tests.adapters.toy_runner import Noise, Toy, loader, toy_runner

COUNTER = itertools.count()  # every runner needs another name
NAMES = ('road', 'car', 'sky', 'person')
HEAD = {'num_classes': 4, 'thing_ids': [1, 3]}


class Stop(Hook):
    """Ends a run that the checks let pass."""

    priority = 'VERY_LOW'

    def before_train(self, runner):
        raise KeyboardInterrupt

    before_test = before_train


def run(work_dir, head, train=None, val=None, mode='train', **options):
    """Run until the first iteration. ``train`` and ``val`` are the metainfo of the data sets."""
    train, val = (Noise(**(metainfo or {'classes': NAMES})) for metainfo in (train, val))
    settings = {
        'model': Toy(**head),
        'train_dataloader': loader(train),
        'val_dataloader': loader(val, 'DefaultSampler'),
        'test_dataloader': loader(val, 'DefaultSampler'),
        'test_evaluator': {'type': 'mmengine.DumpResults', 'out_file_path': f'{work_dir}/out.pkl'},
        'test_cfg': {},
        **options,
    }
    hooks = [{'type': f'mmseg_m2f.{name}'} for name in ('ClassCheckHook', 'BatchSizeHook')]
    runner = toy_runner(work_dir, str((work_dir, next(COUNTER))), *hooks, Stop(), **settings)
    with pytest.raises(KeyboardInterrupt):
        getattr(runner, mode)()
    return runner


@pytest.mark.parametrize(
    ('head', 'metainfo'),
    [
        ({'num_classes': 4}, {'classes': NAMES}),
        ({'num_classes': 7, 'thing_ids': [1]}, {'tells': 'nothing'}),
        (HEAD, {'classes': NAMES, 'thing_ids': (3, 1)}),
        (HEAD, {'classes': NAMES, 'thing_classes': ['person', 'car']}),
        # A semantic head has no things.
        ({'num_classes': 4}, {'classes': NAMES, 'thing_ids': [1, 3]}),
        # mmseg's foreground and background in one class.
        ({'num_classes': 1}, {'classes': NAMES[:2]}),
        # No head of ours.
        ({}, {'classes': NAMES}),
    ],
)
def test_fitting_data_run(tmp_path, head, metainfo):
    run(tmp_path, head, metainfo, metainfo)


@pytest.mark.parametrize(
    ('head', 'metainfo', 'message'),
    [
        (
            {'num_classes': 19},
            {'classes': NAMES},
            r'4 classes \(road, .* num_classes=19\. Set',
        ),
        ({'num_classes': 2}, {'classes': '0123456789'}, r'10 classes \(0, .*, 6, 7, \.\.\.\)'),
        ({'num_classes': 1, 'thing_ids': [0]}, {'classes': NAMES[:2]}, 'has 2 classes'),
        (HEAD, {'classes': NAMES, 'thing_ids': [0, 1]}, 'set: 0 road; only in the head: 3 person'),
        (
            HEAD,
            {'classes': NAMES, 'thing_classes': ['person']},
            r'in the data set: none; only in the head: 1 car\. Set thing_ids=\[3\]',
        ),
        (HEAD, {'thing_ids': [1]}, 'in the head: 3 class 3'),
    ],
)
def test_other_classes_or_things_stop_the_run(tmp_path, head, metainfo, message):
    with pytest.raises(ValueError, match=f'data set of train_dataloader .*{message}'):
        run(tmp_path, head, metainfo, metainfo)


def test_only_the_data_of_the_run_is_checked(tmp_path):
    head, wrong = {'num_classes': 4}, {'classes': NAMES[:3]}
    run(tmp_path, head, train=wrong, mode='test')
    for mode, name in (('test', 'test'), ('train', 'val')):
        with pytest.raises(ValueError, match=f'{name}_dataloader has 3 classes'):
            run(tmp_path, head, val=wrong, mode=mode)


def evaluate(work_dir, metric, label_map=None, **test_cfg):
    folders = {'img': str(COCO / 'img/val'), 'seg': str(COCO / 'panoptic/val')}
    if label_map:
        folders['label_map'] = str(label_map)
    data = PanopticDataset(ann_file=str(ANN_FILE), data_prefix=folders, test_mode=True)
    model = Toy()
    model.test_cfg = core.PostprocessConfig(**test_cfg)
    val = loader(data, 'DefaultSampler')
    run(work_dir, {}, model=model, val_dataloader=val, val_evaluator=metric)


@pytest.mark.parametrize('kind', ['Semantic', 'Panoptic', 'Instance'])
def test_a_result_that_is_switched_off_stops_the_run(tmp_path, kind):
    metric, switch = {'type': f'mmseg_m2f.{kind}Metric'}, f'{kind.lower()}_on'
    evaluate(tmp_path, metric)
    with pytest.raises(ValueError, match=rf'of val_evaluator .*test_cfg\.{switch}=False'):
        evaluate(tmp_path, metric, **{switch: False})


def test_missing_files_stop_the_run(tmp_path):
    semantic = {'type': 'mmseg_m2f.SemanticMetric'}
    evaluate(tmp_path, semantic, COCO / 'labelmap/val')
    instances = {'type': 'mmseg_m2f.InstanceMetric', 'ann_file': 'nowhere.json'}
    for metric, label_map, message in (
        (semantic, tmp_path / 'panoptic_semseg_val2017', r'0885\.png, .*coco-panoptic-semantic'),
        (semantic, tmp_path / 'labels', 'Check data_root, data_prefix.label_map'),
        (instances, None, r'reads nowhere\.json, which does not exist'),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            evaluate(tmp_path, metric, label_map)


@pytest.mark.parametrize(
    ('auto_scale_lr', 'steps', 'warning'),
    [
        (None, 4, None),
        ({'base_batch_size': 8}, 4, None),
        ({'base_batch_size': 16}, 4, 'made for 16 images per update, but an update sees 8'),
        # MMEngine has scaled the rate to 2 images: accumulated steps do not count for it.
        ({'base_batch_size': 16, 'enable': True}, 1, None),
        (
            {'base_batch_size': 16, 'enable': True},
            4,
            'for 2 images per update, but an update sees 8: consider 4 times the learning rate',
        ),
    ],
)
def test_the_batch_of_an_update_is_logged(tmp_path, auto_scale_lr, steps, warning):
    wrapper = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.1}}
    wrapper['accumulative_counts'] = steps
    runner = run(tmp_path, {}, auto_scale_lr=auto_scale_lr, optim_wrapper=wrapper)
    assert f'one update sees {2 * steps} images: 1 process(es) x 2 x {steps}' in str(runner.said)
    assert [warning in line for line in runner.warned] == ([True] if warning else [])
