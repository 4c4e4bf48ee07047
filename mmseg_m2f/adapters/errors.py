"""Error messages that name the file which caused them."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def name_file_in_errors(kind: str, path: str) -> Iterator[None]:
    """Put path and kind (``'panoptic PNG'``) of a file into each error raised inside."""
    try:
        yield
    except OSError as error:
        raise OSError(f'cannot read the {kind} {path}: {error}') from error
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
