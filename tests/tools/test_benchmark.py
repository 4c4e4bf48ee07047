"""The harness alternates, refuses on disagreement and reports medians; no torch is timed here."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.benchmark import harness


def benchmark(difference: float = 0.0) -> harness.Benchmark:
    return harness.Benchmark(
        module='unused',
        cases=('small', 'large'),
        implementations=('ours', 'theirs'),
        prepare=lambda case, implementation: lambda: None,
        disagreement=lambda case: (difference, 1e-3),
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(case, implementation) of each measuring process, which runs in this one instead."""
    order = []

    def run(bench: harness.Benchmark, options: Sequence[str], args: SimpleNamespace) -> dict:
        if options[0] == '--gate':
            difference, limit = bench.disagreement(options[1])
            return {'difference': difference, 'limit': limit, 'torch': '0.0'}
        order.append((options[1], options[2]))
        return {'seconds': float(len(order)), 'peak_mib': 10.0 * len(options[2])}

    monkeypatch.setattr(harness, '_run', run)
    return order


def test_turns_and_table(started: list[tuple[str, str]], tmp_path: Path, capsys) -> None:
    path = tmp_path / 'new' / 'table.csv'
    harness.main(benchmark(), ['--cases', 'small', '--pairs', '3', '--csv', str(path)])
    names = ['ours', 'theirs', 'theirs', 'ours', 'ours', 'theirs']
    assert started == [('small', name) for name in names]
    with path.open() as file:
        ours, theirs = csv.DictReader(file)
    assert path.read_text().startswith(
        'case,impl,median_s,p25,p75,peak_mib,ratio,max_abs_diff,threads,torch,commit\n'
    )
    # Processes 1, 4, 5 were ours and took as many seconds; 2, 3, 6 were theirs.
    assert (ours['median_s'], ours['p25'], ours['p75']) == ('4', '2.5', '4.5')
    assert float(theirs['ratio']) == 1
    assert float(ours['ratio']) == pytest.approx(4 / 3, abs=1e-3)
    assert (ours['peak_mib'], theirs['peak_mib']) == ('40', '60')
    assert 'time x1.333, memory x0.667' in capsys.readouterr().out


@pytest.mark.parametrize('difference', [1.0, float('nan')])
def test_no_number_when_outputs_disagree(
    started: list[tuple[str, str]], difference: float, tmp_path: Path
) -> None:
    path = tmp_path / 'table.csv'
    with pytest.raises(SystemExit, match='nothing timed'):
        harness.main(benchmark(difference), ['--csv', str(path)])
    assert not started
    assert not path.exists()


def test_a_process_measures_itself(tmp_path: Path) -> None:
    path = tmp_path / 'result.json'
    harness.main(benchmark(), ['--measure', 'small', 'ours', '--result', str(path)])
    sample = harness.Sample(**json.loads(path.read_text()))
    assert sample.seconds >= 0
    # More than a bare interpreter, less than the machine: the unit is MiB.
    assert 5 < sample.peak_mib < 100_000


def test_a_failing_process_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = benchmark()._replace(module='no.such.module')
    with pytest.raises(SystemExit, match='No module named'):
        harness.main(broken, ['--pairs', '1'])


def test_the_harness_imports_no_torch() -> None:
    """A child's ``ru_maxrss`` starts at the size of the process that started it."""
    code = 'import sys, tools.benchmark.harness; sys.exit("torch" in sys.modules)'
    done = harness.subprocess.run([sys.executable, '-c', code], cwd=harness.ROOT, check=False)
    assert done.returncode == 0
