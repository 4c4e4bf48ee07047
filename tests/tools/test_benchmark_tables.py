"""The committed tables: their columns, the state measured, and what documents quote."""

import csv
import re
from pathlib import Path

import pytest

from tools.benchmark import tables

FILES = sorted(tables.FOLDER.glob('*.csv'))
COLUMNS = [
    *('case', 'impl', 'median_s', 'p25', 'p75', 'peak_mib', 'ratio', 'max_abs_diff', 'threads'),
    *('torch', 'commit', 'above_model_mib', 'argmax_agreement'),
]
# Not of the harness: counts, labels of a trained model, kinds of work.
OTHERS = ('counters', 'agreement', 'breakdown')


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_table_is_of_a_state_that_can_be_had_again(path: Path) -> None:
    assert all(re.fullmatch(r'[0-9a-f]{9}', row['commit']) for row in rows(path))
    assert all(row['torch'] for row in rows(path))


@pytest.mark.parametrize(
    'path', [p for p in FILES if not p.stem.startswith(OTHERS)], ids=lambda path: path.stem
)
def test_ratios_are_of_the_last_row_of_their_case(path: Path) -> None:
    found = rows(path)
    assert list(found[0]) == COLUMNS
    last = {row['case']: float(row['median_s']) for row in found}
    for row in found:
        ratio = float(row['median_s']) / last[row['case']]
        assert float(row['ratio']) == pytest.approx(ratio, rel=2e-3), row


def test_documents_have_the_numbers_of_the_tables() -> None:
    """`python -m tools.benchmark.tables` writes them."""
    for path in tables.DOCUMENTS:
        text = path.read_text()
        assert tables.MARK.search(text), path
        assert tables.renewed(text) == text, path


def test_numbers_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    column = tables.Column('work', 'file', 'case', 'mmseg')
    common = {'argmax_agreement': '', 'p25': '', 'p75': ''}
    ours = {'median_s': '0.5', 'peak_mib': '100', 'above_model_mib': '10', 'max_abs_diff': '0.002'}
    peer = {'median_s': '1.1', 'peak_mib': '250', 'above_model_mib': '40', 'max_abs_diff': '0'}
    table = {
        ('case', 'ours'): {**common, **ours, 'ratio': '0.4545'},
        ('case', 'mmseg'): {**common, **peer, 'ratio': '1'},
        ('case', 'mmseg-bf16'): {**common, **peer, 'ratio': '0.5', 'max_abs_diff': '13.99'},
    }
    monkeypatch.setattr(tables, 'COLUMNS', [column])
    monkeypatch.setattr(tables, 'read', lambda file: table)
    assert tables.short().splitlines()[-1] == (
        "| work | 0.50 s | **2.20** MMSegmentation |  | 100 MiB, 0.40 of MMSegmentation's | 0.002 |"
    )
    assert '| **ours** | 0.45, 0.25, 0.002 |' in tables.long()
    assert '| the peer | 1.00, 1.00 |' in tables.long()
    assert '| the peer in bfloat16, tuned | 0.50, 1.00, 14 |' in tables.long()


def test_documents_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / 'README.md'
    whole = tables.DOCUMENTS[0].read_text()
    copy.write_text(tables.MARK.sub(r'\1an old table\n\3', whole))
    monkeypatch.setattr(tables, 'DOCUMENTS', (copy,))
    tables.main()
    assert copy.read_text() == whole
