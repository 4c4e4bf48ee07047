"""Write the tables of the documents from the CSV files in docs/benchmarks.

    python -m tools.benchmark.tables

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. `NAME` is a kind of case, or
`main` for the cases of the first page. No torch is imported here: see `run`.
"""

import csv
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.benchmark.cases import CASES, MAIN
from tools.benchmark.measure import ROOT

FOLDER = ROOT / 'docs/benchmarks'
DOCUMENTS = (ROOT / 'README.md', FOLDER / 'README.md')
MARK = re.compile(r'(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)', re.DOTALL)
NAMES = {
    'ours': 'ours',
    'ours-cpu': 'ours with `cpu.speed_up`',
    'mmseg': 'MMSegmentation',
    'mmdet': 'MMDetection',
    'hf': 'Hugging Face',
    'mmcv': "MMCV's PyTorch form",
    'reference': 'our reference',
}
CASE_HEADS = (
    'case',
    'of',
    'seconds (quartiles)',
    'of the time',
    'process, MiB',
    'above model, MiB',
    'of that',
    'largest difference',
)
MAIN_HEADS = (
    'seconds, and times as fast as the peer',
    'peer',
    'ours',
    'with `cpu.speed_up`',
    "memory, share of the peer's",
    'largest difference of outputs',
)
NOT_MEASURED = 'Not measured yet.\n'

Rows = list[dict[str, str]]


def main() -> None:
    """Write the tables of all documents anew."""
    for path in DOCUMENTS:
        path.write_text(renewed(path.read_text(), FOLDER))


def renewed(text: str, folder: Path) -> str:
    """Return a document with the tables of the CSV files in `folder`."""
    return MARK.sub(lambda found: f'{found[1]}{table(found[2], folder)}{found[3]}', text)


def table(name: str, folder: Path) -> str:
    """Return the table `main`, of a kind of case, or of one case."""
    if name == 'main':
        return _join(MAIN_HEADS, [row for case in MAIN for row in main_rows(case, folder)])
    cases = [case for case, data in CASES.items() if name in (case, data.kind)]
    if not cases:
        raise ValueError(f'a document names a table {name!r}: it must be main or a kind of case')
    return _join(CASE_HEADS, [row for case in cases for row in case_rows(case, folder)])


def case_rows(case: str, folder: Path) -> list[list[str]]:
    """Return a row of cells for each implementation of a case that was measured."""
    data = CASES[case]
    measured = by_implementation(case, folder)
    baseline = measured.get(data.implementations[-1])
    rows = []
    for name in (*data.implementations, *data.more):
        if name not in measured:
            continue
        own = measured[name]
        p25, seconds, p75 = quartiles([float(row['seconds']) for row in own])
        peak, above = (median(own, column) for column in ('peak_mib', 'above_model_mib'))
        shares = ['', '']
        if baseline and len(data.implementations) > 1:
            columns = ('seconds', 'above_model_mib')
            shares = [f'{median(own, key) / median(baseline, key):.2f}' for key in columns]
        cells = [data.title, NAMES[name], f'{seconds:.3g} ({p25:.3g} to {p75:.3g})', shares[0]]
        cells += [f'{peak:,.0f}', f'{above:,.0f}', shares[1], _difference(own)]
        rows.append(cells)
    return rows


def main_rows(case: str, folder: Path) -> list[list[str]]:
    """Return how much faster and smaller ours are than the peer; no row if one is missing."""
    peer = CASES[case].implementations[-1]
    measured = by_implementation(case, folder)
    if not {'ours', 'ours-cpu', peer} <= measured.keys():
        return []
    seconds = {name: median(rows, 'seconds') for name, rows in measured.items()}
    peak = {name: median(rows, 'peak_mib') for name, rows in measured.items()}
    cells = [CASES[case].title, f'{NAMES[peer]} {seconds[peer]:.2f} s']
    for name in ('ours', 'ours-cpu'):
        cells.append(f'{seconds[name]:.2f} s, **{seconds[peer] / seconds[name]:.1f}x**')
    shares = ' and '.join(f'{peak[name] / peak[peer]:.2f}' for name in ('ours', 'ours-cpu'))
    return [[*cells, shares, _difference(measured['ours'])]]


def _difference(rows: Rows) -> str:
    largest = rows[0]['largest_difference']
    return f'{float(largest):.2g}' if largest else ''


def _join(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return NOT_MEASURED
    lines = [heads, ['---', *['--:'] * (len(heads) - 1)], *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def read_csv(path: Path) -> Rows:
    """Return the rows of a CSV file; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file, numbers to four significant digits and NaN as nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, fields, lineterminator='\n')
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return '' if math.isnan(value) else f'{value:.4g}'


def by_implementation(case: str, folder: Path) -> dict[str, Rows]:
    """Return the rows of a case, one for each process, by implementation."""
    found: dict[str, Rows] = {}
    for row in read_csv(folder / f'{CASES[case].kind}.csv'):
        if row['case'] == case:
            found.setdefault(row['implementation'], []).append(row)
    return found


def median(rows: Rows, column: str) -> float:
    """Return the median of a column over the processes."""
    return statistics.median(float(row[column]) for row in rows)


def quartiles(values: list[float]) -> list[float]:
    """Return the 25th, 50th and 75th percentile; of a single value three times the value."""
    return statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else values * 3


if __name__ == '__main__':
    main()
