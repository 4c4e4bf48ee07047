"""Read what was downloaded, and write files that are either whole or missing."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from command_line import UsageError
from PIL import Image

# The last chunk of every PNG: its absence shows a file that was cut short.
PNG_END = b'\x00\x00\x00\x00IEND\xaeB`\x82'


class Layout:
    """The folder of a data set; ``expected`` says in an error what belongs into it."""

    def __init__(self, root: Path, expected: str) -> None:
        self.root = root
        self.expected = expected

    def missing(self, path: Path, remark: str = '') -> UsageError:
        """Return the error to raise for a missing path."""
        return UsageError(
            f'{path} is missing{remark}: expected in {self.root} are {self.expected} '
            '(docs/datasets.md tells where to get them)'
        )

    def path(self, name: str) -> Path:
        """Return a file or folder below the root; raise UsageError if it is missing."""
        path = self.root / name
        if not path.exists():
            raise self.missing(path)
        return path

    def names(self, folder: Path, ending: str) -> list[str]:
        """Return the sorted names with this ending; raise UsageError if there are none."""
        names = sorted(name for name in list_names(folder) if name.endswith(ending))
        if not names:
            raise self.missing(folder / f'*{ending}')
        return names

    def require(self, folder: Path, names: Iterable[str]) -> None:
        """Raise UsageError unless the folder has all of these files."""
        there = list_names(folder)
        lost = [name for name in names if name not in there]
        if lost:
            remark = f' (and {len(lost) - 1} more)' if len(lost) > 1 else ''
            raise self.missing(folder / lost[0], remark)


def list_names(folder: Path) -> set[str]:
    """List the names in a folder, without hidden ones; none if there is no such folder."""
    if not folder.is_dir():
        return set()
    return {name for name in os.listdir(folder) if not name.startswith('.')}


def read_map(path: Path) -> np.ndarray:
    """Read a label or id map: ``(height, width)`` or ``(height, width, channels)``."""
    with _open_image(path) as image:
        return np.asarray(image)


def read_size(path: Path) -> tuple[int, int]:
    """Read ``(height, width)`` from the head of an image file."""
    with _open_image(path) as image:
        return image.height, image.width


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError) as error:
        raise UsageError(f'{path} cannot be read: {error}') from error


def read_json(path: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file; ``hook`` may replace each object by something smaller meanwhile."""
    try:
        return json.loads(path.read_bytes(), object_hook=hook)
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
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of ``path`` when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        with temporary.open('wb') as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels: ``uint8``, ``(height, width)`` or ``(height, width, 3)``."""
    with replacing(path) as file:
        Image.fromarray(pixels).save(file, format='PNG')
