"""The benchmark program alternates, refuses where outputs differ, resumes, and writes tables.

No model is built here: the processes it would start are replaced.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.benchmark import run, tables
from tools.benchmark.cases import CASES
from tools.benchmark.measure import ROOT, Agreement

CASE, OTHER = 'deform-attn-forward-512', 'deform-attn-both-512'
NAMES = ['ours', 'reference', 'mmcv']


class Started(list):
    """(case, implementation) of each measuring process; `agreement` is what comparisons find."""

    agreement = Agreement(0.0, 1e-3, 0.25)
    stop_at = ''

    def start(self, _: Any, options: list[str]) -> dict:
        kind, case, *names = options
        if kind == '--compare':
            agreements = dict.fromkeys(names, self.agreement)
            result = {'torch': '2', 'instruction_set': 'AVX2', 'agreements': agreements}
            return json.loads(json.dumps(result))
        if names == [self.stop_at]:
            raise KeyboardInterrupt
        self.append((case, names[0]))
        number = float(len(self))
        return {'seconds': number, 'peak_mib': 10 * number, 'above_model_mib': number}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    order = Started()
    monkeypatch.setattr(run, 'start', order.start)
    monkeypatch.setattr(run, '_commit', lambda: '123456789')
    return order


def rows(folder: Path) -> list[dict[str, str]]:
    return tables.read_csv(folder / 'deform_attn.csv')


def test_processes_run_by_turns(started: Started, tmp_path: Path) -> None:
    run.main(['--cases', CASE, '--processes', '2', '--threads', '3', '--out', str(tmp_path)])
    names = [*NAMES, *NAMES[::-1]]
    assert started == [(CASE, name) for name in names]
    found = rows(tmp_path)
    assert list(found[0]) == list(run.Row._fields)
    assert [row['implementation'] for row in found] == names
    assert [row['seconds'] for row in found] == ['1', '2', '3', '4', '5', '6']
    conditions = {(row['threads'], row['commit'], row['instruction_set']) for row in found}
    assert conditions == {('3', '123456789', 'AVX2')}
    assert {(row['largest_difference'], row['equal_labels']) for row in found} == {('0.25', '')}


def test_resume_runs_what_is_missing(started: Started, tmp_path: Path) -> None:
    """After an interrupt, and when more processes are asked for."""
    options = ['--cases', CASE, OTHER, '--out', str(tmp_path), '--resume']
    started.stop_at = 'mmcv'
    with pytest.raises(KeyboardInterrupt):
        run.main([*options, '--processes', '1'])
    assert [row['implementation'] for row in rows(tmp_path)] == NAMES[:2]
    started.stop_at = ''
    run.main([*options, '--processes', '1'])
    assert started[2:] == [(CASE, 'mmcv'), *((OTHER, name) for name in NAMES)]
    run.main([*options, '--processes', '2'])
    assert started[6:] == [(case, name) for case in (CASE, OTHER) for name in NAMES[::-1]]
    before = rows(tmp_path)
    run.main([*options, '--processes', '2'])
    assert rows(tmp_path) == before
    assert len(started) == 12


@pytest.mark.parametrize('change', ['commit', 'no --resume'])
def test_rows_of_another_state_are_measured_anew(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run.main(['--cases', CASE, OTHER, '--processes', '1', '--out', str(tmp_path)])
    resume = []
    if change == 'commit':
        monkeypatch.setattr(run, '_commit', lambda: 'abcdef012')
        resume = ['--resume']
    one = ['--cases', CASE, '--implementations', 'mmcv', '--processes', '1', *resume]
    run.main([*one, '--out', str(tmp_path)])
    assert started[6:] == [(CASE, 'mmcv')]
    # Rows of other cases and implementations stay, and the cases keep their order.
    assert [row['case'] for row in rows(tmp_path)] == [CASE] * 3 + [OTHER] * 3
    assert {row['seconds'] for row in rows(tmp_path)} == {'1', '2', '7', '4', '5', '6'}


@pytest.mark.parametrize('difference', [1.0, math.nan])
def test_no_number_where_outputs_disagree(
    started: Started, difference: float, tmp_path: Path
) -> None:
    started.agreement = Agreement(difference, 1e-3, difference)
    with pytest.raises(SystemExit, match='nothing was timed'):
        run.main(['--cases', CASE, '--out', str(tmp_path)])
    assert not started
    assert not list(tmp_path.iterdir())


def test_a_process_that_fails_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run.sys, 'executable', 'false')
    with pytest.raises(SystemExit, match=f'--compare {CASE} ours reference mmcv failed'):
        run.main(['--cases', CASE, '--out', str(tmp_path)])


MEASURED = """
import sys
from tools.benchmark import run

calls = []

def step():
    calls.append(1)
    bytearray(b'1') * (80 * 2**20)
    return 30 * 2**20

sample = run.measure(step, steps=3, warm_up=2, per_step=1000)
print(sample.above_model_mib, sample.peak_mib, sample.seconds, len(calls), 'torch' in sys.modules)
"""


def test_a_process_measures_its_steps() -> None:
    """80 MiB for a step, of which the caller keeps 30. The program itself imports no torch."""
    done = subprocess.check_output([sys.executable, '-c', MEASURED], cwd=ROOT, text=True)
    above, peak, seconds, calls, has_torch = done.split()
    assert 40 < float(above) < 60
    assert 80 < float(peak) < 100_000  # MiB; it starts at that of the parent
    assert float(seconds) > 0
    assert (calls, has_torch) == ('5', 'False')


def test_tables_by_hand(tmp_path: Path) -> None:
    """The memory of a row is 100 times its seconds, above the model 10 times."""
    measured = {'ours': [1.0, 2.0, 9.0], 'ours-cpu': [1.0], 'mmseg': [8.0, 8.0]}
    columns = ('seconds', 'peak_mib', 'above_model_mib')
    found = [
        {
            'case': 'training-r50-512',
            'implementation': name,
            **dict(zip(columns, (value, 100 * value, 10 * value), strict=True)),
            'largest_difference': 0.002,
        }
        for name, seconds in measured.items()
        for value in seconds
    ]
    tables.write_csv(tmp_path / 'training.csv', list(found[0]), found)
    title = 'training step, R50, two images of 512 x 512'
    assert tables.table('main', tmp_path).splitlines()[-1] == (
        f'| {title} | MMSegmentation 8.00 s | 2.00 s, **4.0x** | 1.00 s, **8.0x** '
        '| 0.25 and 0.12 | 0.002 |'
    )
    lines = tables.table('training', tmp_path).splitlines()
    assert lines[2] == f'| {title} | ours | 2 (1.5 to 5.5) | 0.25 | 200 | 20 | 0.25 | 0.002 |'
    assert len(lines) == 5
    assert tables.table('inference', tmp_path) == tables.NOT_MEASURED


def test_documents_have_the_numbers_of_csv_files_of_known_states() -> None:
    """`python -m tools.benchmark.tables` writes them."""
    for path in tables.DOCUMENTS:
        text = path.read_text()
        assert tables.MARK.search(text), path
        assert tables.renewed(text, tables.FOLDER) == text, path
    for path in tables.FOLDER.glob('*.csv'):
        for row in tables.read_csv(path):
            assert re.fullmatch(r'[0-9a-f]{9,}', row['commit']), path
            assert row['case'] in CASES, path
