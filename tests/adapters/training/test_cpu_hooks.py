"""The hooks for a CPU, with what else may hold or wrap the run's model."""

import platform
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mmseg_m2f.adapters  # noqa: F401 - registers the hooks
from mmseg_m2f.adapters.training import cpu_hooks
from mmseg_m2f.core.layers import FeedForward
from mmseg_m2f.registry import HOOKS

needs_folder = pytest.mark.skipif(not find_spec('mmseg_m2f.cpu'), reason='may be deleted')
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def model():
    return nn.Sequential(FeedForward(8, 16))


def before_run(runner, hook='CpuSpeedHook'):
    HOOKS.build({'type': f'mmseg_m2f.{hook}'}).before_run(runner)


def is_fast(model):
    return 'forward' in vars(model[0])


def test_without_the_folder_or_glibc_one_line_says_so(monkeypatch, said, warned):
    monkeypatch.setattr(cpu_hooks, 'find_spec', lambda name: None)
    monkeypatch.setattr(cpu_hooks.platform, 'libc_ver', lambda: ('musl', '1.2'))
    runner = SimpleNamespace(model=model())
    before_run(runner)
    before_run(runner, 'KeepMemoryHook')
    assert said == ['CpuSpeedHook: mmseg_m2f.cpu is not installed: no change', *warned]
    assert warned == ['KeepMemoryHook needs glibc: no change']
    assert not is_fast(runner.model)


@needs_folder
def test_a_checkpoint_that_is_loaded_afterwards_counts():
    fast, other = model(), model()
    before_run(SimpleNamespace(model=fast))
    assert is_fast(fast)
    assert list(fast.state_dict()) == list(other.state_dict())
    fast.load_state_dict(other.state_dict())
    close(fast(X), other(X))


@needs_folder
@pytest.mark.parametrize('ema_first', [False, True])
def test_the_averaged_weights_are_exchanged_around_a_validation(ema_first):
    runner = SimpleNamespace(model=model(), iter=0)
    ema, start = EMAHook(momentum=0.5), runner.model(X)
    for step in [ema.before_run, before_run][:: 1 if ema_first else -1]:
        step(runner)
    for parameter in runner.model.parameters():
        parameter.data += 1
    for runner.iter in range(2):
        ema.after_train_iter(runner, runner.iter)
    trained, averaged = runner.model(X), model()
    assert not torch.allclose(trained, start)
    averaged.load_state_dict(ema.ema_model.module.state_dict())
    ema.before_val_epoch(runner)
    close(runner.model(X), averaged(X))
    ema.after_val_epoch(runner)
    close(runner.model(X), trained)


@needs_folder
def test_gradients_pass_through_distributed_data_parallel(tmp_path):
    dist.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        fast, other = model(), model()
        other.load_state_dict(fast.state_dict())
        wrapped = DistributedDataParallel(fast)
        before_run(SimpleNamespace(model=wrapped))
        assert is_fast(fast)
        for one in (wrapped, other):
            one(X).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for got, expected in zip(fast.parameters(), other.parameters(), strict=True):
        close(got.grad, expected.grad)


RESIDENT_AFTER_FREEING = """
import resource
from pathlib import Path
import torch
import mmseg_m2f.adapters
from mmseg_m2f.registry import HOOKS

def resident_bytes():
    torch.ones(64, 2**20)
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()

without = resident_bytes()
HOOKS.build({'type': 'mmseg_m2f.KeepMemoryHook'}).before_run(None)
print(resident_bytes() - without)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc' or not Path('/proc/self/statm').exists(),
    reason='needs glibc and /proc',
)
def test_a_freed_tensor_stays_in_the_process():
    """The tensor has 256 MiB; half of it tells whether it stayed."""
    command = [sys.executable, '-W', 'ignore', '-c', RESIDENT_AFTER_FREEING]
    assert int(subprocess.check_output(command).split()[-1]) > 128 * 2**20
