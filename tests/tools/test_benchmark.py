"""The harness alternates, refuses on disagreement and reports medians; no torch is timed here."""

import csv
import json
import subprocess
import sys
import time
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
        disagreement=lambda case, names: (difference, 1e-3),
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(case, implementation) of each measuring process, which runs in this one instead."""
    order = []

    def run(bench: harness.Benchmark, options: Sequence[str], args: SimpleNamespace) -> dict:
        if options[0] == '--gate':
            return json.loads(json.dumps(harness.gate_findings(bench, *options[1:])))
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
        'case,impl,median_s,p25,p75,peak_mib,ratio,max_abs_diff,threads,torch,commit,'
        'above_model_mib,argmax_agreement\n'
    )
    # Processes 1, 4, 5 were ours and took as many seconds; 2, 3, 6 were theirs.
    assert (ours['median_s'], ours['p25'], ours['p75']) == ('4', '2.5', '4.5')
    assert float(theirs['ratio']) == 1
    assert float(ours['ratio']) == pytest.approx(4 / 3, abs=1e-3)
    assert (ours['peak_mib'], theirs['peak_mib']) == ('40', '60')
    assert 'time x1.333, memory x0.667' in capsys.readouterr().out


def test_each_implementation_has_its_own_verdict(
    started: list[tuple[str, str]], tmp_path: Path, capsys
) -> None:
    """One cannot run here and is left out; another has its own difference and labels."""
    path = tmp_path / 'table.csv'
    verdict = {
        'ours': harness.Agreement(0.25, 0.5, 0.75),
        'half': 'no such type here',
        'theirs': harness.Agreement(0, 0),
    }
    judged = benchmark()._replace(
        implementations=('ours', 'half', 'theirs'), disagreement=lambda case, names: verdict
    )
    harness.main(judged, ['--cases', 'small', '--pairs', '1', '--csv', str(path)])
    assert started == [('small', 'ours'), ('small', 'theirs')]
    with path.open() as file:
        ours, theirs = csv.DictReader(file)
    assert (ours['max_abs_diff'], ours['argmax_agreement']) == ('0.25', '0.75')
    assert (theirs['max_abs_diff'], theirs['argmax_agreement']) == ('0', '')
    assert 'small half: left out: no such type here' in capsys.readouterr().out


def test_what_is_optional_runs_where_it_is_named(started: list[tuple[str, str]]) -> None:
    few = benchmark()._replace(optional=('small', 'theirs'))
    harness.main(few, ['--pairs', '1'])
    assert started == [('large', 'ours')]
    started.clear()
    harness.main(few, ['--pairs', '1', '--cases', 'small', '--implementations', 'theirs'])
    assert started == [('small', 'theirs')]


@pytest.mark.parametrize('difference', [1.0, float('nan')])
def test_no_number_when_outputs_disagree(
    started: list[tuple[str, str]], difference: float, tmp_path: Path
) -> None:
    path = tmp_path / 'table.csv'
    with pytest.raises(SystemExit, match='nothing timed'):
        harness.main(benchmark(difference), ['--csv', str(path)])
    assert not started
    assert not path.exists()


def test_a_run_that_ends_early_leaves_the_cases_before(
    started: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, measured = tmp_path / 'table.csv', harness._run
    three = benchmark()._replace(cases=('small', 'middle', 'large'))

    def stopped(bench: harness.Benchmark, options: Sequence[str], args: SimpleNamespace) -> dict:
        if options[:2] == ['--measure', 'large']:
            raise KeyboardInterrupt
        return measured(bench, options, args)

    monkeypatch.setattr(harness, '_run', stopped)
    # A table that is part of the commit changes as soon as it is written.
    monkeypatch.setattr(harness, 'commit', lambda: 'a+' if path.exists() else 'a')
    with pytest.raises(KeyboardInterrupt):
        harness.main(three, ['--csv', str(path)])
    with path.open() as file:
        assert [(row['case'], row['impl'], row['commit']) for row in csv.DictReader(file)] == [
            (case, name, 'a') for case in ('small', 'middle') for name in ('ours', 'theirs')
        ]


def test_a_process_measures_itself(tmp_path: Path) -> None:
    path = tmp_path / 'result.json'
    harness.main(benchmark(), ['--measure', 'small', 'ours', '--result', str(path)])
    sample = harness.Sample(**json.loads(path.read_text()))
    assert sample.seconds >= 0
    # More than a bare interpreter, less than the machine: the unit is MiB.
    assert 5 < sample.peak_mib < 100_000


EIGHTY_MIB = """
import sys
from tools.benchmark import harness

def step():
    bytearray(b'1') * (80 * 2**20)
    return 30 * 2**20

benchmark = harness.Benchmark('unused', ('small',), ('ours',), lambda *_: step, None)
harness.main(benchmark, ['--measure', 'small', 'ours', '--result', sys.argv[1]])
"""


def test_memory_above_the_model_is_that_of_the_steps(tmp_path: Path) -> None:
    """80 MiB for a step, of which its caller keeps 30; in a process of its own, as always."""
    path = tmp_path / 'result.json'
    command = [sys.executable, '-c', EIGHTY_MIB, str(path)]
    subprocess.run(command, cwd=harness.ROOT, check=True)
    assert 40 < harness.Sample(**json.loads(path.read_text())).above_model_mib < 60


def test_time_is_stated_for_a_share_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / 'result.json'
    shared = benchmark()._replace(prepare=lambda *_: lambda: time.sleep(0.05), per_step=1000)
    harness.main(shared, ['--measure', 'small', 'ours', '--result', str(path)])
    assert harness.Sample(**json.loads(path.read_text())).seconds < 0.05


def test_a_failing_process_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = benchmark()._replace(module='no.such.module')
    with pytest.raises(SystemExit, match='No module named'):
        harness.main(broken, ['--pairs', '1'])


def test_the_harness_imports_no_torch() -> None:
    """A child's ``ru_maxrss`` starts at the size of the process that started it."""
    code = 'import sys, tools.benchmark.harness; sys.exit("torch" in sys.modules)'
    done = harness.subprocess.run([sys.executable, '-c', code], cwd=harness.ROOT, check=False)
    assert done.returncode == 0
