"""A resumed run continues the stopped one with the same images and random numbers."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmseg_m2f.adapters.training.resume import RandomStateHook, random_state, set_random_state
from tests.adapters.toy_runner import Noise, Record, toy_runner

SEED = {'randomness': {'seed': 7}}


def loader(batch_size: int = 2, sampler: str = 'InfiniteSampler', **options: object) -> dict:
    data = {'batch_size': batch_size, 'num_workers': 0, 'dataset': Noise()}
    return {**data, 'sampler': {'type': sampler, 'shuffle': True}, **options}


def train(work_dir: Path, **options: object) -> Record:
    runner = toy_runner(work_dir, str(work_dir), record := Record(), **options)
    runner.train()
    # Left to the garbage collector, a data loading worker is waited for five seconds.
    if runner.train_dataloader._iterator is not None:
        runner.train_dataloader._iterator._shutdown_workers()
    record.runner = runner
    return record


def straight_and_resumed(
    tmp_path: Path, stop: str = 'iter_3', resume: dict | None = None, **options: object
) -> tuple[Record, Record]:
    """Train without interruption, and once more from the checkpoint ``stop`` of that run."""
    straight = train(tmp_path / 'straight', **options)
    file = str(tmp_path / 'straight' / f'{stop}.pth')
    options = {'load_from': file, 'resume': True, **options, **(resume or {})}
    return straight, train(tmp_path / 'resumed', **options)


@pytest.mark.parametrize('options', [SEED, {}], ids=['seed', 'no seed'])
def test_resumed_run_equals_a_straight_one(tmp_path: Path, options: dict) -> None:
    straight, resumed = straight_and_resumed(tmp_path, **options)
    assert resumed.images == straight.images[3:]
    assert resumed.losses == straight.losses[3:]
    ends = [
        torch.load(tmp_path / run / 'iter_6.pth', weights_only=False)
        for run in ('straight', 'resumed')
    ]
    torch.testing.assert_close(ends[0]['state_dict'], ends[1]['state_dict'], rtol=0, atol=0)
    # Dicts of tensors do not compare, but their text does, with all digits.
    torch.set_printoptions(precision=10)
    for key in ('optimizer', 'param_schedulers'):
        assert str(ends[0][key]) == str(ends[1][key])


def test_epoch_based_run_resumes_alike(tmp_path: Path) -> None:
    straight, resumed = straight_and_resumed(
        tmp_path,
        stop='epoch_1',
        train_dataloader=loader(batch_size=4, sampler='DefaultSampler'),
        train_cfg={'type': 'EpochBasedTrainLoop', 'max_epochs': 2},
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        **SEED,
    )
    assert resumed.losses == straight.losses[4:]


def test_resuming_loads_no_image_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(tmp_path / 'straight')
    loaded = []
    original = Noise.__getitem__
    monkeypatch.setattr(
        Noise, '__getitem__', lambda self, index: (loaded.append(index), original(self, index))[1]
    )
    # No validation, which loads images as well.
    without_validation = {'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None}
    file = str(tmp_path / 'straight' / 'iter_3.pth')
    train(tmp_path / 'resumed', load_from=file, resume=True, **without_validation)
    assert loaded == [index for batch in straight.images[3:] for index in batch]


def test_workers_continue_with_the_next_image(tmp_path: Path) -> None:
    straight, resumed = straight_and_resumed(
        tmp_path, train_dataloader=loader(num_workers=1, persistent_workers=True), **SEED
    )
    assert resumed.images == straight.images[3:]
    # Not the seed of the first iterations again.
    assert resumed.runner.train_dataloader.worker_init_fn.keywords['seed'] == 7 + 3


def test_a_sampler_without_a_position_is_left_to_mmengine(tmp_path: Path) -> None:
    options = {'train_dataloader': loader(sampler='DefaultSampler'), **SEED}
    straight = train(tmp_path / 'straight', **options)
    file = str(tmp_path / 'straight' / 'iter_3.pth')
    runner = toy_runner(
        tmp_path / 'resumed', 'resumed', record := Record(), load_from=file, resume=True, **options
    )
    lines: list[str] = []
    runner.logger.warning = lines.append
    runner.train()
    assert record.images == straight.images[3:]
    assert any('RandomStateHook cannot set the position' in line for line in lines)


def test_load_from_starts_anew(tmp_path: Path) -> None:
    straight, tuned = straight_and_resumed(tmp_path, resume={'resume': False}, **SEED)
    assert tuned.images == straight.images


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


def test_validation_does_not_change_the_training(tmp_path: Path) -> None:
    often = {'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 6, 'val_interval': 1}}
    rarely = train(tmp_path / 'rarely', **SEED)
    assert rarely.losses == train(tmp_path / 'often', **SEED, **often).losses


def test_random_state_round_trip() -> None:
    state = random_state()
    first = Noise()[0]
    set_random_state(state)
    assert torch.equal(first['inputs'], Noise()[0]['inputs'])
