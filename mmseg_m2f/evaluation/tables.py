"""Text tables for the log."""

from collections.abc import Iterable, Sequence

import numpy as np


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a table: text columns aligned left, numbers right, NaN as a dash."""
    rows = list(rows)
    cells = [list(header), *([_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [isinstance(value, str) for value in (rows[0] if rows else header)]
    lines = [
        '  '.join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        )
        for line in cells
    ]
    lines.insert(1, '-' * len(lines[0]))
    return '\n'.join(line.rstrip() for line in lines)


def _text(value: object) -> str:
    if isinstance(value, float | np.floating):
        return '-' if np.isnan(value) else f'{value:.2f}'
    return str(value)
