"""Write the tables of the documents from the CSV files in docs/benchmarks.

    python -m tools.benchmark.tables

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. `NAME` is a kind of case, or
`main` for the cases of the first page. No torch is imported here: see `run`.
"""

import csv
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

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
    """Return the table of a kind of case, or of the main cases.

    Raises:
        ValueError: there is no such table.
    """
    if name == 'main':
        return main_table(folder)
    cases = [case for case, data in CASES.items() if data.kind == name]
    if not cases:
        known = sorted({'main', *(case.kind for case in CASES.values())})
        raise ValueError(f'there is no table {name!r}: a document may name {", ".join(known)}')
    return _join(CASE_HEADS, [row for case in cases for row in case_rows(case, folder)])


CASE_HEADS = (
    'case',
    'of',
    'seconds (quartiles)',
    'of the time',
    'process, MiB',
    'above model, MiB',
    'of that',
    'difference',
)


def case_table(case: str, folder: Path) -> str:
    """Return the table of one case."""
    return _join(CASE_HEADS, case_rows(case, folder))


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
        above = median(own, 'above_model_mib')
        ratios = ['', '']
        if baseline and len(data.implementations) > 1:
            ratios = [
                f'{seconds / median(baseline, "seconds"):.2f}',
                f'{above / median(baseline, "above_model_mib"):.2f}',
            ]
        rows.append(
            [
                data.title,
                NAMES[name],
                f'{seconds:.3g} ({p25:.3g} to {p75:.3g})',
                ratios[0],
                f'{median(own, "peak_mib"):,.0f}',
                f'{above:,.0f}',
                ratios[1],
                own[0]['largest_difference'],
            ]
        )
    return rows


def main_table(folder: Path) -> str:
    """Return how much faster and smaller ours are than the peer, for the main cases."""
    heads = ('', 'peer', 'ours', 'with `cpu.speed_up`', 'memory of the process', 'difference')
    rows = []
    for case in MAIN:
        peer = CASES[case].implementations[-1]
        measured = by_implementation(case, folder)
        if not {'ours', 'ours-cpu', peer} <= measured.keys():
            continue
        seconds, peak = (
            {name: median(rows, column) for name, rows in measured.items()}
            for column in ('seconds', 'peak_mib')
        )
        cells = [CASES[case].title, f'{NAMES[peer]} {seconds[peer]:.2f} s']
        for name in ('ours', 'ours-cpu'):
            cells.append(f'{seconds[name]:.2f} s, **{seconds[peer] / seconds[name]:.1f}x**')
        shares = ' and '.join(f'{peak[name] / peak[peer]:.2f}' for name in ('ours', 'ours-cpu'))
        rows.append([*cells, shares, measured['ours'][0]['largest_difference']])
    return _join(heads, rows)


def _join(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return NOT_MEASURED
    lines = [heads, ['---', *['--:'] * (len(heads) - 1)], *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def read(path: Path) -> Rows:
    """Return the rows of a CSV file; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def by_implementation(case: str, folder: Path) -> dict[str, Rows]:
    """Return the rows of a case, one for each process, by implementation."""
    found: dict[str, Rows] = {}
    for row in read(folder / f'{CASES[case].kind}.csv'):
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
