"""The GPU benchmark without a GPU: its dry run, and what it says of what is missing."""

import csv
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tools.benchmark import gpu_timing, ops

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools/benchmark/gpu.sh'
COLUMNS = (
    'case,impl,median_s,p25,p75,peak_mib,ratio,max_abs_diff,threads,torch,commit,device,floor_s,'
    'synchronisations'
)


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        'PYTHON': sys.executable,
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
        **variables,
    }
    return subprocess.run(
        [SCRIPT, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    [path] = folder.glob(f'{name}_cpu_torch*.csv')
    assert path.read_text().splitlines()[0] == COLUMNS
    with path.open() as file:
        return list(csv.DictReader(file))


def test_dry_run_of_the_operator(tmp_path: Path) -> None:
    result = run('--dry-run', '--only', 'ops', tmp_path / 'out')
    assert result.returncode == 0, result.stdout[-3000:]
    log = (tmp_path / 'out/gpu.log').read_text()
    assert log.rstrip().splitlines()[-1].startswith('gpu: OK after ')
    assert "64x64b1_fp16 triton: left out: ms_deform_attn: back end 'triton' cannot run" in log
    assert '=== ' in log
    assert 'waterfall, until' not in log
    found = rows(tmp_path / 'out', 'gpu-ops')
    assert {row['impl'] for row in found} == {'reference', 'mmcv'}
    # fp16 and bf16 have no row of mmcv, whose torch path takes float32 alone.
    assert [row['case'] for row in found if row['impl'] == 'mmcv'] == [
        '64x64b1_fp32_forward',
        '64x64b1_fp32_backward',
    ]
    assert all(float(row['floor_s']) > 0 and row['device'] == 'cpu' for row in found)
    assert all(row['peak_mib'] == row['synchronisations'] == '' for row in found)


@pytest.mark.long
def test_dry_run_of_everything(tmp_path: Path) -> None:
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet')
    result = run('--dry-run', tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    assert 'needs an NVIDIA GPU' in result.stdout  # the tests marked cuda were found and skipped
    models = rows(tmp_path, 'gpu-models')
    assert {row['impl'] for row in models} == {'ours', 'ours-mixed', 'mmseg', 'mmdet'}
    waterfall = {row['impl']: row for row in rows(tmp_path, 'gpu-waterfall')}
    assert list(waterfall) == ['stock', 'head', 'bf16', 'mixed']
    assert float(waterfall['head']['max_abs_diff']) < 1e-3
    assert float(waterfall['stock']['ratio']) == 1


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
@pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention')
def test_what_is_timed_has_no_score_maps_and_what_is_compared_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet')
    from tools.benchmark import gpu_models, harness, segmentors

    monkeypatch.setenv(harness.FOLDER, str(tmp_path))
    case, cpu = gpu_models.DRY_CASES['semantic-64_inference'], torch.device('cpu')
    segmentors.share_weights(segmentors.SPECS['r18'], 'r18', ['mmseg'], case.batch)
    ours, peer = (gpu_models.prepare(case, name, cpu, amp=False) for name in ('ours', 'mmseg'))
    # Of random weights a rounding error may flip an attention bit, which moves a query's mask.
    assert float((ours.values - peer.values).abs().median()) < 1e-4
    [sample] = ours.step()
    assert 'seg_logits' not in sample
    assert 'pred_sem_seg' in sample


def test_a_section_that_fails_is_reported_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / 'python').write_text(
        '#!/bin/sh\ncase "$*" in *gpu_ops*) exit 3 ;; *gpu_models*) echo "$@" ;; esac\n'
    )
    (tmp_path / 'python').chmod(0o755)
    result = run(
        '--dry-run', '--only', 'models,ops', tmp_path / 'out', PYTHON=str(tmp_path / 'python')
    )
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert 'gpu: FAILED: ops (status 3)' in lines
    assert f'-m tools.benchmark.gpu_models --dry-run {tmp_path / "out"}' in lines
    assert lines[-1].startswith('gpu: FAILED after ')
    assert lines[-1].endswith(': ops')


def test_without_a_gpu_the_real_run_fails_at_once(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 1
    assert 'gpu: FAILED: torch sees no GPU here' in result.stdout


@pytest.mark.parametrize(
    'arguments', [(), ('--only',), ('--only', 'speed', 'out'), ('--fast', 'x')]
)
def test_usage(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout.startswith('usage: ')


def test_the_least_bytes_of_the_largest_shape() -> None:
    """Two images of 1024 x 1024 in float32: 137.6 MB forward, 231.2 MB backward."""
    from tools.benchmark.gpu_ops import minimal_bytes

    tokens = 2 * 21504
    leaves = [torch.empty(tokens, columns, device='meta') for columns in (256, 192, 96)]
    gradient = torch.empty(tokens, 256, device='meta')
    problem = ops.Problem((leaves[0], [], leaves[0], leaves[1], leaves[2]), gradient)
    assert minimal_bytes('forward', problem) == pytest.approx(137.6e6, rel=1e-3)
    assert minimal_bytes('backward', problem) == pytest.approx(231.2e6, rel=1e-3)


def test_a_failure_of_ours_fails_the_table_and_one_of_a_peer_does_not(tmp_path, capsys) -> None:
    def broken() -> None:
        raise RuntimeError('no such kernel\nwith details')

    table = gpu_timing.Table('table', gpu_timing.Options(tmp_path, dry_run=True))
    table.add('case', {'ours': gpu_timing.Figures([2.0], math.nan, 0.5)}, None)
    assert gpu_timing.attempt(table, 'case', 'peer', broken, ours=False) is None
    table.finish()
    assert gpu_timing.attempt(table, 'case', 'ours', broken, ours=True) is None
    with pytest.raises(SystemExit, match='failed: case ours'):
        table.finish()
    output = capsys.readouterr().out
    assert 'case peer: left out: RuntimeError: no such kernel\n' in output
    assert 'case ours: FAILED: RuntimeError: no such kernel\n' in output


def test_an_empty_table_is_a_failure(tmp_path: Path) -> None:
    table = gpu_timing.Table('table', gpu_timing.Options(tmp_path, dry_run=True))
    with pytest.raises(SystemExit, match='every case'):
        table.finish()


def test_a_dry_run_takes_each_time_once() -> None:
    order = []
    steps = {name: lambda name=name: order.append(name) for name in ('ours', 'peer')}
    seconds = gpu_timing.timed_by_turns(steps, torch.device('cpu'), rounds=3, budget=1.0)
    # The first call of each only tells how long it takes.
    assert order == ['ours', 'peer', 'ours', 'peer']
    assert {name: len(values) for name, values in seconds.items()} == {'ours': 1, 'peer': 1}


def test_synchronisations_are_what_torch_warns_of(monkeypatch) -> None:
    modes = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)

    def step() -> None:
        warnings.warn('does not yet detect all synchronizing operations', stacklevel=1)
        for _ in range(2):
            warnings.warn('called a synchronizing CUDA operation', stacklevel=1)

    assert gpu_timing.count_synchronisations(step, torch.device('cuda')) == 2
    assert modes == ['warn', 'default']


def test_times_on_a_gpu_are_those_of_events(monkeypatch) -> None:
    """The clock stands in for a GPU whose every call takes 2 ms; each waits behind an idle GPU."""
    log = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append('event')

        def elapsed_time(self, end: 'Event') -> float:
            return 2.0

    real = torch.empty
    monkeypatch.setattr(torch, 'empty', lambda size, dtype, device: real(8, dtype=dtype))
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(torch.cuda, '_sleep', lambda cycles: log.append('sleep'))
    seconds = gpu_timing.timed_by_turns(
        {'step': lambda: log.append('step')},
        torch.device('cuda'),
        rounds=2,
        budget=0.04,
        kernels_only=True,
    )
    # Of 40 ms each turn has 20, and each call is taken for 4: 2 of its own, 2 of idling.
    assert seconds == {'step': [0.002] * 10}
    assert log == ['sleep', 'event', 'step', 'event'] * 13
