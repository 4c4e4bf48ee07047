"""What the runner keeps: the head's configuration, the batch size, the random numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_m2f.adapters.training.resume import (
    BatchSizeHook,
    RandomStateHook,
    head_config_differences,
    random_state,
    set_random_state,
)
from tests.adapters.toy_runner import Noise, Record, toy_runner

CONFIG = {'num_classes': 2, 'decoder': {'num_layers': 9, 'sizes': [1, 2]}}


def warnings_of(runner, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(runner.logger, 'warning', lines.append)
    return lines


def train(work_dir: Path, name: str, **options: object) -> Record:
    record = Record()
    runner = toy_runner(work_dir, name, record, **options)
    runner.train()
    stop_loader(runner)
    return record


def stop_loader(runner: Runner) -> None:
    # Left to the garbage collector, a loader process is waited for five seconds.
    if runner.train_dataloader._iterator is not None:
        runner.train_dataloader._iterator._shutdown_workers()


def test_head_config_is_kept_beside_the_weights(tmp_path: Path) -> None:
    train(tmp_path, 'keep')
    assert json.loads((tmp_path / 'head_config.json').read_text()) == CONFIG
    checkpoint = torch.load(tmp_path / 'iter_6.pth', weights_only=False)
    assert checkpoint['meta']['head_config'] == CONFIG


def test_another_head_config_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / 'first', 'first')
    runner = toy_runner(tmp_path / 'second', 'second')
    lines = warnings_of(runner, monkeypatch)
    runner.load_checkpoint(str(tmp_path / 'first' / 'iter_6.pth'))
    assert lines == []
    runner.model.config = {'num_classes': 3, 'decoder': {'num_layers': 9, 'sizes': (1, 2)}}
    runner.load_checkpoint(str(tmp_path / 'first' / 'iter_6.pth'))
    assert lines == ['the checkpoint was made with head num_classes = 2, this model has 3']


def test_differences_name_every_key() -> None:
    saved = {'a': {'b': 1, 'c': (1, 2)}, 'gone': None, 'same': {}}
    config = {'a': {'b': 2, 'c': [1, 2]}, 'new': {'x': 0}, 'same': {}}
    assert head_config_differences(saved, config) == [
        ('a.b', 1, 2),
        ('new.x', '(not set)', 0),
        ('gone', None, '(not set)'),
    ]


@pytest.mark.parametrize('seed', [7, None])
def test_resumed_run_equals_a_straight_one(tmp_path: Path, seed: int | None) -> None:
    options = {'randomness': {'seed': seed}} if seed is not None else {}
    straight = train(tmp_path / 'straight', f'straight-{seed}', **options)
    resumed = train(
        tmp_path / 'resumed',
        f'resumed-{seed}',
        load_from=str(tmp_path / 'straight' / 'iter_3.pth'),
        resume=True,
        **options,
    )
    assert resumed.images == straight.images[3:]
    assert resumed.losses == straight.losses[3:]
    ends = [
        torch.load(tmp_path / run / 'iter_6.pth', weights_only=False)
        for run in ('straight', 'resumed')
    ]
    torch.testing.assert_close(ends[0]['state_dict'], ends[1]['state_dict'], rtol=0, atol=0)
    # Dicts of tensors do not compare, their text does, to all digits.
    torch.set_printoptions(precision=10)
    for key in ('optimizer', 'param_schedulers'):
        assert str(ends[0][key]) == str(ends[1][key])


def test_resuming_loads_no_image_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(tmp_path / 'straight', 'straight-once')
    loaded = []
    original = Noise.__getitem__
    monkeypatch.setattr(
        Noise, '__getitem__', lambda self, index: (loaded.append(index), original(self, index))[1]
    )
    options = {'load_from': str(tmp_path / 'straight' / 'iter_3.pth'), 'resume': True}
    # No validation, which loads images as well.
    options |= {'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None}
    train(tmp_path / 'resumed', 'resumed-once', **options)
    assert loaded == [index for batch in straight.images[3:] for index in batch]


def test_loader_processes_go_on_with_the_next_image(tmp_path: Path) -> None:
    loader = {'batch_size': 2, 'num_workers': 1, 'persistent_workers': True, 'dataset': Noise()}
    loader['sampler'] = {'type': 'InfiniteSampler', 'shuffle': True}
    options = {'train_dataloader': loader, 'randomness': {'seed': 3}}
    straight = train(tmp_path / 'straight', 'straight-worker', **options)
    runner = toy_runner(
        tmp_path / 'resumed',
        'resumed-worker',
        record := Record(),
        load_from=str(tmp_path / 'straight' / 'iter_3.pth'),
        resume=True,
        **options,
    )
    runner.train()
    stop_loader(runner)
    assert record.images == straight.images[3:]
    # Not the seed of the first iterations again.
    assert runner.train_dataloader.worker_init_fn.keywords['seed'] == 3 + 3


def test_processes_of_a_job_draw_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for rank in (0, 1, 0):
        monkeypatch.setattr(
            'mmseg_m2f.adapters.training.resume.get_dist_info', lambda rank=rank: (rank, 2)
        )
        hook = RandomStateHook()
        runner = SimpleNamespace(_resume=False)
        hook.after_load_checkpoint(runner, {'random_state': {**random_state(), 'sampler_seed': 5}})
        hook._restore(iteration=3)
        drawn.append(Noise()[0]['inputs'][1].item())
    assert drawn[0] == drawn[2] != drawn[1]


def test_load_from_starts_anew(tmp_path: Path) -> None:
    options = {'randomness': {'seed': 7}}
    straight = train(tmp_path / 'straight', 'straight-new', **options)
    tuned = train(
        tmp_path / 'tuned',
        'tuned',
        load_from=str(tmp_path / 'straight' / 'iter_3.pth'),
        **options,
    )
    assert tuned.images == straight.images


def test_validation_does_not_change_the_training(tmp_path: Path) -> None:
    options = {'randomness': {'seed': 7}}
    often = {'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 6, 'val_interval': 1}}
    runs = [
        train(tmp_path / 'rarely', 'rarely', **options),
        train(tmp_path / 'often', 'often', **options, **often),
    ]
    assert runs[0].losses == runs[1].losses


def test_epoch_based_run_resumes_alike(tmp_path: Path) -> None:
    loader = {'batch_size': 4, 'num_workers': 0, 'dataset': Noise()}
    loader['sampler'] = {'type': 'DefaultSampler', 'shuffle': True}
    options = {
        'train_dataloader': loader,
        'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': 2},
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        'randomness': {'seed': 7},
    }
    straight = train(tmp_path / 'straight', 'straight-epoch', **options)
    resumed = train(
        tmp_path / 'resumed',
        'resumed-epoch',
        load_from=str(tmp_path / 'straight' / 'epoch_1.pth'),
        resume=True,
        **options,
    )
    assert resumed.losses == straight.losses[4:]


def test_random_state_round_trip() -> None:
    state = random_state()
    first = Noise()[0]
    set_random_state(state)
    assert torch.equal(first['inputs'], Noise()[0]['inputs'])


@pytest.mark.parametrize(
    ('auto_scale_lr', 'steps', 'warning'),
    [
        ({'base_batch_size': 8}, 4, None),
        ({'base_batch_size': 16}, 4, 'set for 16 images an update, here they are 8'),
        ({'base_batch_size': 16, 'enable': True}, 1, None),
        (
            {'base_batch_size': 16, 'enable': True},
            4,
            'set for 2 images an update, here they are 8',
        ),
        (None, 4, None),
    ],
)
def test_batch_of_an_update(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    auto_scale_lr: dict | None,
    steps: int,
    warning: str | None,
) -> None:
    class Stop(Hook):
        priority = 'VERY_LOW'

        def before_train(self, runner) -> None:
            raise KeyboardInterrupt

    runner = toy_runner(tmp_path, f'batch-{auto_scale_lr}-{steps}', auto_scale_lr=auto_scale_lr)
    runner.cfg.optim_wrapper = None
    runner.optim_wrapper['accumulative_counts'] = steps
    runner.register_hook(BatchSizeHook())
    runner.register_hook(Stop())
    info: list[str] = []
    monkeypatch.setattr(runner.logger, 'info', info.append)
    lines = warnings_of(runner, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert f'one update sees {2 * steps} images: 1 process(es) x 2 x {steps}' in ' '.join(info)
    assert [warning in line for line in lines] == ([True] if warning else [])


def test_a_sampler_that_cannot_be_placed_is_left_to_mmengine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = {'batch_size': 2, 'num_workers': 0, 'dataset': Noise()}
    loader['sampler'] = {'type': 'DefaultSampler', 'shuffle': True}
    options = {'train_dataloader': loader, 'randomness': {'seed': 7}}
    straight = train(tmp_path / 'straight', 'straight-default', **options)
    record = Record()
    options |= {'load_from': str(tmp_path / 'straight' / 'iter_3.pth'), 'resume': True}
    runner = toy_runner(tmp_path / 'resumed', 'resumed-default', record, **options)
    lines = warnings_of(runner, monkeypatch)
    runner.train()
    assert record.images == straight.images[3:]
    assert any('RandomStateHook knows no way' in line for line in lines)
