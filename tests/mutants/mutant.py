"""The record of a mutant."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One small wrong change to one file of the package.

    Args:
        name: lower-case words joined by underscores; no two mutants share one.
        breaks: a sentence that says which behavior is wrong after the change.
        file: path from the root of the repository.
        old: text that occurs exactly once in the file.
        new: text that replaces it.
        tests: test files, as paths from the root, of which at least one test must fail.
    """

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def count(self, root: Path = ROOT) -> int:
        """How often the old text occurs in the file below ``root``; 0 without the file."""
        path = root / self.file
        return path.read_text(encoding='utf-8').count(self.old) if path.is_file() else 0

    def apply(self, root: Path) -> None:
        """Change the file below ``root``, a copy of the repository."""
        path = root / self.file
        text = path.read_text(encoding='utf-8')
        path.write_text(text.replace(self.old, self.new), encoding='utf-8')
