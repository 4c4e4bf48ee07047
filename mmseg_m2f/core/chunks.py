"""The one bound on memory: large intermediate results are formed for some rows at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# The most bytes that one intermediate tensor may take, unless a single row takes more: 32 MiB.
# Results at full size are usually formed in several chunks, losses in one or two. With 300 targets,
# or 100 queries in an image of 4000 x 5000 pixels, a tensor of all rows would take gigabytes.
# Larger chunks are no faster.
CHUNK_BYTES = 2**25


def rows_per_chunk(bytes_per_row: int) -> int:
    """Return how many rows of ``bytes_per_row`` fit the budget together, at least one."""
    return max(CHUNK_BYTES // max(bytes_per_row, 1), 1)


def map_chunks(function: Callable[..., Tensor], *rows: Tensor, bytes_per_row: int) -> Tensor:
    """Compute ``function(*rows)`` for chunks of the first axis, and join the results.

    ``function`` must treat each row by itself and draw no random numbers. Rows that fit the budget
    are one plain call. Of several chunks the backward pass keeps the rows alone and computes
    ``function`` again, so that its intermediate results exist for one chunk at a time there, too.

    Args:
        function: maps tensors of m rows to a tensor of m rows.
        rows: tensors of equal length.
        bytes_per_row: what the largest tensor inside ``function`` takes for one row.
    """
    size = rows_per_chunk(bytes_per_row)
    if len(rows[0]) <= size:
        return function(*rows)
    chunks = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return torch.cat(
        [
            checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
    )
