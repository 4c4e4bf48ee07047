"""Assignment by SciPy's modified Jonker-Volgenant solver, on the host."""

import numpy as np
from scipy import optimize


def linear_sum_assignment(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the cheapest assignment of ``min(rows, columns)`` pairs.

    Args:
        cost: ``(Q, N)`` finite floats; ``N`` may be 0.

    Returns:
        Two int64 arrays of equal length, rows ascending.
    """
    rows, columns = optimize.linear_sum_assignment(cost)
    return rows.astype(np.int64, copy=False), columns.astype(np.int64, copy=False)
