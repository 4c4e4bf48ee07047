"""Error messages that name the file which caused them."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def errors_name(kind: str, path: str) -> Iterator[None]:
    """Put the path of a file into every ``OSError`` and ``ValueError`` raised inside.

    Args:
        kind: what the file is, for example ``'panoptic PNG'``.
        path: the file.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f'cannot read the {kind} {path}: {error}') from error
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
