"""A run stops before it starts if its data, head and metrics do not fit together."""

import pytest

from mmseg_m2f import core
from mmseg_m2f.adapters.data import PanopticDataset
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
    """Has the config of a head, whatever it is."""

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
    'count': ({'num_classes': 4}, {'classes': NAMES}),
    'nothing told': ({'num_classes': 7, 'thing_ids': [1]}, {}),
    'things in another order': (
        {'num_classes': 4, 'thing_ids': [1, 3]},
        {'classes': NAMES, 'thing_ids': (3, 1)},
    ),
    'names of the things': (
        {'num_classes': 4, 'thing_ids': [1, 3]},
        {'classes': NAMES, 'thing_classes': ['person', 'car']},
    ),
    'things and a semantic head': ({'num_classes': 4}, {'classes': NAMES, 'thing_ids': [1, 3]}),
    'one class of two, semantic': ({'num_classes': 1}, {'classes': NAMES[:2]}),
    'no head of ours': ({}, {'classes': NAMES}),
}


@pytest.mark.parametrize('case', FITTING)
def test_fitting_data_run(case, tmp_path):
    head, metainfo = FITTING[case]
    runner = runner_of(tmp_path, f'fitting {case}', head, metainfo, metainfo)
    runner.train()
    assert runner.iter == 1


WRONG = {
    'count': (
        {'num_classes': 19},
        {'classes': NAMES},
        r'has 4 classes \(road, car, sky, person\), but the head has num_classes=19\. Set num',
    ),
    'many names': (
        {'num_classes': 2},
        {'classes': [str(i) for i in range(20)]},
        r'20 classes \(0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\)',
    ),
    'one class of two, detector': (
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
    'instance head, panoptic data': (
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
def test_other_classes_stop_the_run(case, tmp_path):
    head, metainfo, message = WRONG[case]
    runner = runner_of(tmp_path, f'wrong {case}', head, metainfo, metainfo)
    with pytest.raises(ValueError, match=f'data set of train_dataloader .*{message}'):
        runner.train()
    assert runner.iter == 0


def test_only_the_data_of_the_run_is_checked(tmp_path):
    head, wrong = {'num_classes': 4}, {'classes': NAMES[:3]}
    runner_of(tmp_path, 'test fits', head, train=wrong).test()
    with pytest.raises(ValueError, match='test_dataloader has 3 classes'):
        runner_of(tmp_path, 'test differs', head, val=wrong).test()
    with pytest.raises(ValueError, match='val_dataloader has 3 classes'):
        runner_of(tmp_path, 'validation differs', head, val=wrong).train()


class Records(PanopticDataset):
    """Loads no images: the toy model trains on noise."""

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
    # The loop is built but never run: the outputs of the toy model are no samples.
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
def test_a_result_that_is_switched_off_stops_the_run(tmp_path, metric, switch):
    metric = {'type': f'mmseg_m2f.{metric}'}
    config = core.PostprocessConfig(**{switch: False})
    runner = evaluating_runner(tmp_path, f'off {switch}', metric, config=config)
    with pytest.raises(ValueError, match=rf'of val_evaluator .*test_cfg\.{switch}=False'):
        runner.train()
    assert runner.iter == 0
    config = core.PostprocessConfig()
    evaluating_runner(tmp_path, f'on {switch}', metric, config=config).train()


def test_missing_files_stop_the_run(tmp_path):
    semantic = {'type': 'mmseg_m2f.SemanticMetric'}
    missing = tmp_path / 'panoptic_semseg_val2017'
    for label_map, message in (
        (missing, r'000000000885\.png, .*prepare_dataset\.py coco-panoptic-semantic'),
        (tmp_path / 'labels', 'Check data_root, data_prefix.label_map'),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            evaluating_runner(tmp_path, label_map.name, semantic, label_map).train()
    instances = {'type': 'mmseg_m2f.InstanceMetric', 'ann_file': 'nowhere.json'}
    with pytest.raises(FileNotFoundError, match=r'reads nowhere\.json, which does not exist'):
        evaluating_runner(tmp_path, 'instances', instances).train()
    runner = evaluating_runner(tmp_path, 'there', semantic, COCO / 'labelmap/val')
    runner.train()
    assert runner.iter == 1
