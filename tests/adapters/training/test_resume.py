"""A resumed run continues the stopped one with the same images and random numbers."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook

from mmseg_m2f.adapters.checkpoints.errors import CheckpointError
from mmseg_m2f.adapters.training.resume import RandomStateHook, random_state
from tests.adapters.toy_runner import Noise, loader, toy_runner

SEED = {'randomness': {'seed': 7}}


class Record(Hook):
    """Records the images and the loss of each iteration."""

    def __init__(self):
        self.images, self.losses = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.images.append([int(item[0]) for item in data_batch['inputs']])
        self.losses.append(outputs['loss'].item())


def train(work_dir, **options):
    runner = toy_runner(work_dir, str(work_dir), record := Record(), **options)
    record.runner = runner
    runner.train()
    # Left to the garbage collector, a data loading worker is waited for five seconds.
    if runner.train_dataloader._iterator is not None:
        runner.train_dataloader._iterator._shutdown_workers()
    return record


def straight_and_resumed(tmp_path, stop='iter_3', resume=True, **options):
    """Train without interruption, and once more from the checkpoint ``stop`` of that run."""
    straight = train(tmp_path / 'straight', **options)
    file = str(tmp_path / 'straight' / f'{stop}.pth')
    return straight, train(tmp_path / 'resumed', load_from=file, resume=resume, **options)


@pytest.mark.parametrize('options', [SEED, {}], ids=['seed', 'no seed'])
def test_resumed_run_equals_a_straight_one(tmp_path, monkeypatch, options):
    loaded, original = [], Noise.__getitem__
    monkeypatch.setattr(
        Noise, '__getitem__', lambda self, index: (loaded.append(index), original(self, index))[1]
    )
    straight, resumed = straight_and_resumed(tmp_path, **options)
    assert resumed.images == straight.images[3:]
    assert resumed.losses == straight.losses[3:]
    # Both runs load what they train on, and 16 images in each of their 2 and 1 validations.
    assert len(loaded) == 6 * 2 + 2 * 16 + 3 * 2 + 16
    ends = [
        torch.load(tmp_path / run / 'iter_6.pth', weights_only=False)
        for run in ('straight', 'resumed')
    ]
    torch.testing.assert_close(ends[0]['state_dict'], ends[1]['state_dict'], rtol=0, atol=0)
    # Dicts of tensors do not compare, but their text does, with all digits.
    torch.set_printoptions(precision=10)
    for key in ('optimizer', 'param_schedulers'):
        assert str(ends[0][key]) == str(ends[1][key])


def test_epoch_based_run_resumes_alike(tmp_path):
    straight, resumed = straight_and_resumed(
        tmp_path,
        stop='epoch_1',
        train_dataloader=loader(batch_size=4, sampler='DefaultSampler'),
        train_cfg={'type': 'EpochBasedTrainLoop', 'max_epochs': 2},
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        **SEED,
    )
    assert resumed.losses == straight.losses[4:]


def test_workers_continue_with_the_next_image(tmp_path):
    straight, resumed = straight_and_resumed(
        tmp_path, train_dataloader=loader(num_workers=1, persistent_workers=True), **SEED
    )
    assert resumed.images == straight.images[3:]
    # Not the seed of the first iterations again.
    assert resumed.runner.train_dataloader.worker_init_fn.keywords['seed'] == 7 + 3


def test_a_sampler_without_a_position_is_left_to_mmengine(tmp_path):
    straight, resumed = straight_and_resumed(
        tmp_path, train_dataloader=loader(sampler='DefaultSampler'), **SEED
    )
    assert resumed.images == straight.images[3:]
    assert any('cannot set the position of this sampler' in line for line in resumed.runner.warned)


@pytest.mark.parametrize('part', ['state_dict', 'optimizer'])
def test_a_run_of_other_shapes_is_not_resumed(tmp_path, part):
    train(tmp_path / 'straight', **SEED)
    file = tmp_path / 'straight' / 'iter_3.pth'
    checkpoint = torch.load(file, weights_only=False)  # our own file, just made
    if part == 'state_dict':
        name = next(iter(checkpoint['state_dict']))
        checkpoint['state_dict'][name] = torch.zeros(7, 7)
    else:
        name = 'exp_avg'
        checkpoint['optimizer']['state'][0][name] = torch.zeros(7, 7)
    torch.save(checkpoint, file)
    with pytest.raises(CheckpointError, match=f'iter_3.pth cannot be resumed.*{name}.*7, 7'):
        train(tmp_path / 'resumed', load_from=str(file), resume=True, **SEED)


def test_load_from_starts_anew(tmp_path):
    straight, tuned = straight_and_resumed(tmp_path, resume=False, **SEED)
    assert tuned.images == straight.images


def test_processes_of_a_job_draw_different_numbers(monkeypatch):
    drawn = []
    for rank in (0, 1, 0):
        module = 'mmseg_m2f.adapters.training.resume'
        monkeypatch.setattr(f'{module}.get_dist_info', lambda rank=rank: (rank, 2))
        hook, loop = RandomStateHook(), SimpleNamespace(iter=3)
        runner = SimpleNamespace(_resume=False, train_loop=loop)
        hook.after_load_checkpoint(runner, {'random_state': {**random_state(), 'sampler_seed': 5}})
        hook.before_train(runner)
        drawn.append(Noise()[0]['inputs'][1].item())
    assert drawn[0] == drawn[2] != drawn[1]


def test_validation_does_not_change_the_training(tmp_path):
    often = {'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 6, 'val_interval': 1}}
    rarely = train(tmp_path / 'rarely', **SEED)
    assert rarely.losses == train(tmp_path / 'often', **SEED, **often).losses
