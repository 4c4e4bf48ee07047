"""Read what was downloaded, and write files that are either whole or missing."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from command_line import UsageError

if TYPE_CHECKING:
    import numpy as np

# The last chunk of every PNG: its absence shows a file that was cut short.
PNG_END = b'\x00\x00\x00\x00IEND\xaeB`\x82'


class Layout:
    """The folder of a data set, which says in a sentence what is missing in it."""

    def __init__(self, root: Path, expected: str) -> None:
        self.root = root
        self.expected = expected

    def missing(self, path: Path, remark: str = '') -> UsageError:
        """Return the error to raise for a missing path."""
        return UsageError(
            f'{path} is missing{remark}: expected in {self.root} are {self.expected} '
            '(docs/datasets.md tells where to get them)'
        )

    def folder(self, name: str) -> Path:
        """Return a path below the root; raise UsageError if it is missing."""
        path = self.root / name
        if not path.is_dir():
            raise self.missing(path)
        return path

    def require_file(self, name: str) -> None:
        """Raise UsageError if a file below the root is missing."""
        if not (self.root / name).is_file():
            raise self.missing(self.root / name)

    def names(self, folder: Path, ending: str) -> list[str]:
        """Return the sorted names with this ending; raise UsageError if there are none."""
        names = list_names(folder, ending)
        if not names:
            raise self.missing(folder / f'*{ending}')
        return sorted(names)

    def require(self, folder: Path, names: Iterable[str]) -> None:
        """Raise UsageError unless all of these files exist, by one listing of the folder."""
        there = list_names(folder, '')
        lost = [name for name in names if name not in there]
        if lost:
            remark = f' (and {len(lost) - 1} more)' if len(lost) > 1 else ''
            raise self.missing(folder / lost[0], remark)


def list_names(folder: Path, ending: str) -> set[str]:
    """List the names in a folder with this ending, without hidden ones."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {
            entry.name
            for entry in entries
            if entry.name.endswith(ending) and not entry.name.startswith('.')
        }


def read_map(path: Path) -> 'np.ndarray':
    """Read a label or id map: ``(height, width)`` or ``(height, width, channels)``."""
    import numpy as np

    with _open_image(path) as image:
        return np.asarray(image)


def read_size(path: Path) -> tuple[int, int]:
    """Read ``(height, width)`` from the head of an image file."""
    with _open_image(path) as image:
        return image.height, image.width


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError) as error:
        raise UsageError(f'{path} cannot be read: {error}') from error


def read_json(path: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file; ``hook`` may replace each object by something smaller meanwhile."""
    try:
        with path.open(encoding='utf-8') as file:
            return json.load(file, object_hook=hook)
    except ValueError as error:
        raise UsageError(f'{path} is no JSON file: {error}') from error


def is_whole_png(path: Path) -> bool:
    """Tell whether a PNG file is whole, by its two ends. The pixels are not decoded."""
    try:
        with path.open('rb') as file:
            head = file.read(8)
            file.seek(-len(PNG_END), os.SEEK_END)
            return head == b'\x89PNG\r\n\x1a\n' and file.read() == PNG_END
    except OSError:
        return False


@contextlib.contextmanager
def replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Open a temporary file that takes its place when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        with temporary.open(mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_png(path: Path, pixels: 'np.ndarray') -> None:
    """Write pixels: ``uint8``, ``(height, width)`` or ``(height, width, 3)``."""
    from PIL import Image

    with replacing(path, 'wb') as file:
        Image.fromarray(pixels).save(file, format='PNG')


def keep_or_write_png(path: Path, pixels: 'np.ndarray') -> bool:
    """Write the file unless it holds these pixels; return whether it was written."""
    import numpy as np

    if is_whole_png(path) and np.array_equal(read_map(path), pixels):
        return False
    write_png(path, pixels)
    return True
