"""The GPU smoke test without a GPU: its dry run, and what it says of a missing machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools/gpu_smoke.sh'


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        'PYTHON': sys.executable,
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
    }
    return subprocess.run(
        [SCRIPT, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )


def test_dry_run_tests_and_trains(tmp_path):
    result = run('--dry-run', tmp_path / 'out')
    assert result.returncode == 0, result.stdout[-3000:]
    log = (tmp_path / 'out/gpu_smoke.log').read_text()
    assert 'needs an NVIDIA GPU' in log  # the tests marked cuda were found and skipped
    assert 'Iter(train) [2/2]' in log
    assert log.rstrip().splitlines()[-1].startswith('gpu_smoke: OK after ')
    assert (tmp_path / 'out/train/iter_2.pth').exists()


def test_without_a_gpu_the_real_run_fails_at_once(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 1
    assert 'gpu_smoke: FAILED: torch sees no GPU here' in result.stdout


@pytest.mark.parametrize('arguments', [(), ('--dry-run',)])
def test_usage(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout.startswith('usage: ')
