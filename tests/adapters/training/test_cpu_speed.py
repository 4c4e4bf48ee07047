"""The hook that speeds up a run's model, with what else may hold or wrap that model."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mmseg_m2f.adapters  # noqa: F401 - registers the hook
from mmseg_m2f.adapters.training import cpu_speed
from mmseg_m2f.core.layers import FeedForward
from mmseg_m2f.registry import HOOKS

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.ffn = FeedForward(8, 16)

    def forward(self, x):
        return self.ffn(x)


def before_run(runner):
    HOOKS.build({'type': 'mmseg_m2f.CpuSpeedHook'}).before_run(runner)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def plain(state):
    model = Model()
    model.load_state_dict(state)
    return model


def test_without_the_folder_one_line_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(cpu_speed, 'find_spec', lambda name: None)
    monkeypatch.setattr(cpu_speed, 'print_log', lambda text, **_: said.append(text))
    model = Model()
    before_run(SimpleNamespace(model=model))
    assert said == ['CpuSpeedHook: mmseg_m2f.cpu is not installed: no change']
    assert 'forward' not in vars(model.ffn)
    # Nothing of the folder is imported with the hook.
    assert not [value for value in vars(cpu_speed).values() if 'mmseg_m2f.cpu' in str(value)]


class TestWithTheFolder:
    @pytest.fixture(autouse=True)
    def folder(self):
        pytest.importorskip('mmseg_m2f.cpu')

    def test_a_checkpoint_that_is_loaded_afterwards_counts(self):
        model, other = Model(), Model()
        before_run(SimpleNamespace(model=model))
        assert 'forward' in vars(model.ffn)
        assert list(model.state_dict()) == list(other.state_dict())
        model.load_state_dict(other.state_dict())
        close(model(X), other(X))

    @pytest.mark.parametrize('ema_first', [False, True])
    def test_the_averaged_weights_are_exchanged_around_a_validation(self, ema_first):
        runner = SimpleNamespace(model=Model(), iter=0)
        ema = EMAHook(momentum=0.5)
        for step in [ema.before_run, before_run][:: 1 if ema_first else -1]:
            step(runner)
        start = {key: value.clone() for key, value in runner.model.state_dict().items()}
        for parameter in runner.model.parameters():
            parameter.data += 1
        for runner.iter in range(2):
            ema.after_train_iter(runner, runner.iter)
        trained = runner.model(X)
        assert not torch.allclose(trained, plain(start)(X))
        averaged = plain(
            {
                key.removeprefix('module.'): value
                for key, value in ema.ema_model.state_dict().items()
                if key != 'steps'
            }
        )
        ema.before_val_epoch(runner)
        close(runner.model(X), averaged(X))
        ema.after_val_epoch(runner)
        close(runner.model(X), trained)

    def test_gradients_pass_through_distributed_data_parallel(self, tmp_path):
        dist.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
        try:
            model, other = Model(), Model()
            other.load_state_dict(model.state_dict())
            wrapped = DistributedDataParallel(model)
            before_run(SimpleNamespace(model=wrapped))
            assert 'forward' in vars(model.ffn)
            for one in (wrapped, other):
                one(X).square().sum().backward()
        finally:
            dist.destroy_process_group()
        for got, expected in zip(model.parameters(), other.parameters(), strict=True):
            close(got.grad, expected.grad)
