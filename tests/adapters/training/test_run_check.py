"""A run whose data and head disagree about the classes stops before it starts."""

import numpy as np
import pytest

from mmseg_m2f import core
from mmseg_m2f.adapters.data import PanopticDataset
from mmseg_m2f.adapters.metrics.sample_fields import is_thing
from mmseg_m2f.adapters.things import checked_thing_ids, thing_ids_of
from tests.adapters.metrics.evaluation_scenes import ANN_FILE, COCO
from tests.adapters.toy_runner import Noise, Toy, toy_runner

NAMES = ('road', 'car', 'sky', 'person')


class Data(Noise):
    def __init__(self, metainfo: dict) -> None:
        self.own_metainfo = metainfo

    @property
    def metainfo(self) -> dict:
        return self.own_metainfo


class Model(Toy):
    """Tells a head configuration, whatever it is; named as in a detector."""

    def __init__(self, head: dict) -> None:
        super().__init__()
        self.config = head


def runner_of(work_dir, name, head, train=None, val=None):
    def loader(metainfo, sampler):
        data = Data({'classes': NAMES} if metainfo is None else metainfo)
        return {'batch_size': 2, 'num_workers': 0, 'dataset': data, 'sampler': {'type': sampler}}

    return toy_runner(
        work_dir,
        name,
        model=Model(head),
        train_dataloader=loader(train, 'InfiniteSampler'),
        val_dataloader=loader(val, 'DefaultSampler'),
        test_dataloader=loader(val, 'DefaultSampler'),
        test_evaluator={'type': 'mmengine.DumpResults', 'out_file_path': f'{work_dir}/out.pkl'},
        test_cfg={},
        train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': 1, 'val_interval': 10},
        custom_hooks=[{'type': 'mmseg_m2f.ClassCheckHook'}],
    )


FITTING = {
    'the count': ({'num_classes': 4}, {'classes': NAMES}),
    'a data set that tells nothing': ({'num_classes': 7, 'thing_ids': [1]}, {}),
    'things in another order': (
        {'num_classes': 4, 'thing_ids': [1, 3]},
        {'classes': NAMES, 'thing_ids': (3, 1)},
    ),
    "mmdet's names of the things": (
        {'num_classes': 4, 'thing_ids': [1, 3]},
        {'classes': NAMES, 'thing_classes': ['person', 'car']},
    ),
    'a semantic head has no things': (
        {'num_classes': 4},
        {'classes': NAMES, 'thing_ids': [1, 3]},
    ),
    'one class of two in a semantic head': ({'num_classes': 1}, {'classes': NAMES[:2]}),
    'no head of ours': ({}, {'classes': NAMES}),
}


@pytest.mark.parametrize('case', FITTING)
def test_runs_where_the_classes_fit(case, tmp_path):
    head, metainfo = FITTING[case]
    runner = runner_of(tmp_path, f'fitting {case}', head, metainfo, metainfo)
    runner.train()
    assert runner.iter == 1


WRONG = {
    'count': (
        {'num_classes': 19},
        {'classes': NAMES},
        r'has 4 classes \(road, car, sky, person\), the head num_classes=19: set num_classes=4',
    ),
    'many names': (
        {'num_classes': 2},
        {'classes': [str(i) for i in range(20)]},
        r'20 classes \(0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\)',
    ),
    'one class of two in a detector': (
        {'num_classes': 1, 'thing_ids': [0]},
        {'classes': NAMES[:2]},
        'has 2 classes',
    ),
    'things': (
        {'num_classes': 4, 'thing_ids': [0, 1]},
        {'classes': NAMES, 'thing_ids': [1, 3]},
        r'things in the data set only: 3 person; things in the head only: 0 road\. '
        r'Set thing_ids=\[1, 3\] on the head',
    ),
    'an instance head on panoptic data': (
        {'num_classes': 4, 'thing_ids': [0, 1, 2, 3]},
        {'classes': NAMES, 'thing_classes': ['person', 'car']},
        r'things in the head only: 0 road, 2 sky\. Set thing_ids=\[1, 3\]',
    ),
    'things without names': (
        {'num_classes': 4, 'thing_ids': [0, 1]},
        {'thing_ids': [1]},
        'in the head only: 0 class 0',
    ),
}


@pytest.mark.parametrize('case', WRONG)
def test_says_what_differs_and_what_to_set(case, tmp_path):
    head, metainfo, message = WRONG[case]
    runner = runner_of(tmp_path, f'wrong {case}', head, metainfo, metainfo)
    with pytest.raises(ValueError, match=f'data set of train_dataloader .*{message}'):
        runner.train()
    assert runner.iter == 0


def test_the_validation_data_is_checked_before_training(tmp_path):
    runner = runner_of(tmp_path, 'validation', {'num_classes': 4}, val={'classes': NAMES[:3]})
    with pytest.raises(ValueError, match='val_dataloader has 3 classes'):
        runner.train()


def test_a_test_looks_at_the_test_data_only(tmp_path):
    head, wrong = {'num_classes': 4}, {'classes': NAMES[:3]}
    runner_of(tmp_path, 'test fits', head, train=wrong).test()
    with pytest.raises(ValueError, match='test_dataloader has 3 classes'):
        runner_of(tmp_path, 'test differs', head, val=wrong).test()


@pytest.mark.parametrize(
    ('meta', 'things'),
    [
        ({'classes': NAMES, 'thing_ids': (3, 1)}, [3, 1]),
        ({'classes': NAMES, 'thing_classes': ['person', 'car']}, [1, 3]),
        # mmdet's COCO set, whose names stay where the classes are chosen.
        ({'classes': NAMES, 'thing_classes': ['cow', 'car'], 'stuff_classes': NAMES}, [1]),
        ({'classes': NAMES, 'thing_classes': ['cow', 'car'], 'stuff_classes': ['road']}, None),
        ({'classes': NAMES, 'thing_classes': ['cow', 'car']}, None),
        ({'classes': NAMES}, None),
        ({}, None),
    ],
)
def test_things_of_a_data_set(meta, things):
    assert thing_ids_of(meta) == things
    if 'classes' in meta:
        of_metrics = is_thing(meta)
        assert (None if of_metrics is None else np.flatnonzero(of_metrics).tolist()) == (
            things and sorted(things)
        )


def test_ids_of_things_are_whole_numbers():
    assert checked_thing_ids(np.array([2, 0]), 3) == [0, 2]
    assert checked_thing_ids(None, 2) == [0, 1]
    for wrong in ([True], [0.0], ['a'], [[0]], [1, 1], [3]):
        with pytest.raises(ValueError, match='different class indices from 0 to 2'):
            checked_thing_ids(wrong, 3)


class Records(PanopticDataset):
    """The two images of the loop are no tensors of the toy's."""

    def __getitem__(self, index: int) -> dict:
        return Noise()[index]


def evaluating_runner(work_dir, name, evaluator, label_map=None, config=None):
    prefixes = {'img': 'img/val', 'seg': 'panoptic/val'}
    folders = {key: str(COCO / folder) for key, folder in prefixes.items()}
    if label_map:
        folders['label_map'] = str(label_map)
    data = Records(ann_file=str(ANN_FILE), data_prefix=folders, test_mode=True)
    runner = runner_of(work_dir, name, {})
    loader = {'batch_size': 2, 'num_workers': 0, 'sampler': {'type': 'DefaultSampler'}}
    # It is built, but the toy's outputs are no samples for it.
    runner._train_loop['val_begin'] = 99
    runner._val_dataloader = {**loader, 'dataset': data}
    runner._val_evaluator = evaluator
    runner.model.test_cfg = config
    return runner


@pytest.mark.parametrize(
    ('metric', 'switch'),
    [
        ('SemanticMetric', 'semantic_on'),
        ('PanopticMetric', 'panoptic_on'),
        ('InstanceMetric', 'instance_on'),
    ],
)
def test_a_result_that_is_switched_off_is_missed_before_the_training(tmp_path, metric, switch):
    metric = {'type': f'mmseg_m2f.{metric}'}
    config = core.PostprocessConfig(**{switch: False})
    runner = evaluating_runner(tmp_path, f'off {switch}', metric, config=config)
    with pytest.raises(ValueError, match=rf'of val_evaluator needs .*test_cfg\.{switch}=False'):
        runner.train()
    assert runner.iter == 0
    config = core.PostprocessConfig()
    evaluating_runner(tmp_path, f'on {switch}', metric, config=config).train()


def test_missing_files_are_missed_before_the_training(tmp_path):
    semantic = {'type': 'mmseg_m2f.SemanticMetric'}
    missing = tmp_path / 'panoptic_semseg_val2017'
    for label_map, message in (
        (missing, r'000000000885\.png, .*prepare_dataset\.py coco-panoptic-semantic'),
        (tmp_path / 'labels', 'Check data_root, data_prefix.label_map'),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            evaluating_runner(tmp_path, label_map.name, semantic, label_map).train()
    instances = {'type': 'mmseg_m2f.InstanceMetric', 'ann_file': 'nowhere.json'}
    with pytest.raises(FileNotFoundError, match=r'reads nowhere\.json, which is not there'):
        evaluating_runner(tmp_path, 'instances', instances).train()
    # Where the label maps are, training starts.
    runner = evaluating_runner(tmp_path, 'there', semantic, COCO / 'labelmap/val')
    runner.train()
    assert runner.iter == 1
