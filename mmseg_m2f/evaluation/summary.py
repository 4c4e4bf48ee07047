"""Averages and text tables of numbers per class, where NaN means undefined."""

from collections.abc import Iterable, Sequence

import numpy as np


def mean_of_defined(per_class: np.ndarray) -> float:
    """Average the classes that are not NaN; 0 if all are."""
    defined = per_class[~np.isnan(per_class)]
    return float(defined.mean()) if len(defined) else 0.0


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a table: the first column aligned left, the others right, NaN as a dash."""
    cells = [header, *([_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        '  '.join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
        for first, *others in cells
    ]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def _text(value: object) -> str:
    if isinstance(value, float | np.floating):
        return '-' if np.isnan(value) else f'{value:.2f}'
    return str(value)
