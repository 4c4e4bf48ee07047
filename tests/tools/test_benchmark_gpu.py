"""The GPU benchmark without a GPU: its dry run, and what it says of what is missing."""

import math
import sys
import warnings
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from tests.tools import conftest
from tools.benchmark import gpu
from tools.benchmark.measure import ROOT
from tools.benchmark.tables import read_csv

CPU = torch.device('cpu')


def run(*arguments: str | Path, python: str = sys.executable) -> CompletedProcess[str]:
    script = ROOT / 'tools/benchmark/gpu.sh'
    return conftest.run(script, *arguments, cwd=ROOT, PYTHON=python, CUDA_VISIBLE_DEVICES='')


def check_ops(folder: Path) -> None:
    found = read_csv(folder / 'gpu-ops.csv')
    # mmcv's form for a CPU takes float32 alone.
    assert {(row['case'], row['implementation']) for row in found} == {
        *((f'64x64b1_{t}_{p}', 'reference') for t in gpu.DTYPES for p in ('forward', 'backward')),
        *((f'64x64b1_fp32_{p}', 'mmcv') for p in ('forward', 'backward')),
    }
    assert all(row['peak_mib'] == row['synchronizations'] == '' for row in found)
    assert all(float(row['seconds']) > 0 and row['device'] == 'cpu' for row in found)


def test_dry_run_of_the_operator(tmp_path: Path) -> None:
    result = run('--dry-run', '--only', 'ops', tmp_path / 'out')
    assert result.returncode == 0, result.stdout[-3000:]
    log = (tmp_path / 'out/gpu.log').read_text()
    assert log.splitlines()[-1].startswith('gpu: OK after ')
    assert '64x64b1_fp16 mmcv: left out: RuntimeError: expected scalar type' in log
    assert log.count('=== ') == log.count('ops, until 120 s') == 1
    check_ops(tmp_path / 'out')


@pytest.mark.long
def test_dry_run_of_everything(tmp_path: Path) -> None:
    result = run('--dry-run', tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    assert 'needs an NVIDIA GPU' in result.stdout  # the tests marked cuda were found and skipped
    assert 'Iter(train) [2/2]' in result.stdout
    assert (tmp_path / 'train/iter_2.pth').exists()
    check_ops(tmp_path)
    names = ['mmseg', 'mmseg-amp', 'ours', 'ours-amp', 'ours-amp-mixed']
    rows = read_csv(tmp_path / 'gpu-models.csv')
    for kind in ('inference', 'training'):
        found = [row for row in rows if row['case'].startswith(kind)]
        assert [row['implementation'] for row in found] == names
        differences = [float(row['difference']) for row in found]
        assert 0 < differences[2] < differences[1]
    waterfall = [row['implementation'] for row in read_csv(tmp_path / 'gpu-waterfall.csv')]
    assert waterfall == [*names[:2], *names[3:], 'ours-amp-mixed-last']


def test_a_section_that_fails_is_reported_and_the_others_run(tmp_path: Path) -> None:
    python = tmp_path / 'python'
    python.write_text(
        '#!/bin/sh\ncase "$*" in *"gpu ops"*) exit 3 ;; *"gpu models"*) echo "$@" ;; esac\n'
    )
    python.chmod(0o755)
    result = run('--dry-run', '--only', 'models,ops', tmp_path / 'out', python=str(python))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert 'gpu: FAILED: ops (status 3)' in lines
    assert f'-W ignore -m tools.benchmark.gpu models {tmp_path / "out"} --dry-run' in lines
    assert lines[-1].startswith('gpu: FAILED after ')
    assert lines[-1].endswith(': ops')


@pytest.mark.parametrize(
    ('arguments', 'status', 'message'),
    [
        (('out',), 1, 'gpu: FAILED: torch sees no GPU here'),
        *((given, 2, 'usage: ') for given in ((), ('--only', 'speed', 'out'), ('--fast', 'out'))),
    ],
)
def test_without_a_gpu_and_by_mistake(
    arguments: tuple[str, ...], status: int, message: str, tmp_path: Path
) -> None:
    result = run(*(tmp_path / given if given == 'out' else given for given in arguments))
    assert result.returncode == status
    assert message in result.stdout


def test_a_failure_of_ours_fails_the_section_and_one_of_a_peer_does_not(tmp_path, capsys) -> None:
    def broken() -> None:
        raise RuntimeError('no such kernel\nwith details')

    table = gpu.Table('ops', tmp_path, CPU)
    with pytest.raises(SystemExit, match='nothing was measured'):
        table.finish()
    table.time('case', 'ours', lambda: None, 0.5)
    assert table.attempt('case', 'mmseg', broken) is None
    table.finish()
    assert table.attempt('case', 'ours', broken) is None
    with pytest.raises(SystemExit, match='failed: case ours'):
        table.finish()
    output = capsys.readouterr().out
    assert 'case mmseg: left out: RuntimeError: no such kernel\n' in output
    assert 'case ours: FAILED: RuntimeError: no such kernel\n' in output


def test_an_operator_that_is_wrong_fails() -> None:
    drawn = gpu.deform_attn.draw((64, 64), 1)
    right = gpu.deform_attn.operator('reference')
    expected = gpu.deform_attn.run(right, drawn.to(torch.float64))
    gpu.check_operator('reference', drawn, expected)  # raises if it is wrong
    wrong = 1.001 * drawn.args[0].detach()
    spoiled = drawn._replace(args=(wrong.requires_grad_(), *drawn.args[1:]))
    with pytest.raises(RuntimeError, match='differs from float64'):
        gpu.check_operator('reference', spoiled, expected)


def test_a_gpu_is_timed_by_events_and_its_waits_are_counted(monkeypatch) -> None:
    """A stand-in for a GPU whose every call takes 2 ms; each waits behind an idle GPU."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append('event')

        def elapsed_time(self, end: 'Event') -> float:
            return 2.0

    def step() -> None:
        log.append('step')
        warnings.warn('does not yet detect all synchronizing operations', stacklevel=1)
        for _ in range(2):
            warnings.warn('called a synchronizing CUDA operation', stacklevel=1)

    real, modes = torch.empty, []
    monkeypatch.setattr(torch, 'empty', lambda size, dtype, device: real(8, dtype=dtype))
    stand_ins = {
        'Event': Event,
        'synchronize': lambda: None,
        'reset_peak_memory_stats': lambda: None,
        '_sleep': lambda cycles: log.append('sleep'),
        'memory_allocated': lambda: 2**20,
        'max_memory_allocated': lambda: 3 * 2**20,
        'set_sync_debug_mode': modes.append,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(gpu, 'BUDGET', 0.045)
    assert gpu.memory_and_synchronizations(step, torch.device('cuda')) == (2, 2)
    assert modes == ['warn', 'default']
    assert all(map(math.isnan, gpu.memory_and_synchronizations(lambda: None, CPU)))
    log.clear()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        seconds = gpu.times(step, torch.device('cuda'), cold=True)
    # A call is taken for 3 ms, 2 of its own and 1 of idling: 15 fit into 45 ms.
    assert seconds == [0.002] * 15
    assert log == ['sleep', 'event', 'step', 'event'] * 18
