"""Print the lines and statements of each room of the repository, beside the aims.

    python scripts/house.py

Lines are those of the files, blank lines and docstrings included; "of C++" is a part of them.
Statements are Python's, without docstrings: packing two into one line lowers only the lines.
"""

import ast
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SUFFIXES = ('.py', '.cpp', '.sh')


class Size(NamedTuple):
    """How large some files are."""

    lines: int = 0
    cpp_lines: int = 0
    statements: int = 0


# Name, folders and aim in lines. A file belongs to the first room that has its folder.
PACKAGE = [
    ('core', ['mmseg_m2f/core'], 2200),
    ('ops', ['mmseg_m2f/ops'], 1700),
    ('cpu', ['mmseg_m2f/cpu'], 1100),
    ('acceleration', ['mmseg_m2f/adapters/acceleration'], 450),
    ('adapters', ['mmseg_m2f/adapters'], 6600),
    (
        'checkpoints, evaluation, metadata',
        ['mmseg_m2f/checkpoints', 'mmseg_m2f/evaluation', 'mmseg_m2f/metadata'],
        2000,
    ),
    ('rest of the package', ['mmseg_m2f'], None),
]
PACKAGE_AIM = 14000
OTHERS = [
    ('tools and scripts', ['tools', 'scripts'], 4800),
    ('tests', ['tests'], 19000),
    ('configs', ['configs'], None),
]


def main() -> None:
    """Print the table."""
    print(f'{"room":<36}{"lines":>8}{"aim":>8}{"of C++":>8}{"statements":>12}')
    seen: set[Path] = set()
    sizes = [print_room(name, folders, aim, seen) for name, folders, aim in PACKAGE]
    print_row('package', add_up(sizes), PACKAGE_AIM)
    print()
    for name, folders, aim in OTHERS:
        print_room(name, folders, aim, seen)


def print_room(name: str, folders: list[str], aim: int | None, seen: set[Path]) -> Size:
    """Print a room and the folders in it. Leave out the files in `seen`, and add the new ones."""
    parts: dict[str, list[Size]] = {}
    for folder in folders:
        for path in sorted(set(source_files(ROOT / folder)) - seen):
            seen.add(path)
            inside = path.relative_to(ROOT / folder).parts[:-1]
            part = folder if len(folders) > 1 else inside[0] if inside else 'its own files'
            parts.setdefault(part, []).append(measure(path))
    size = add_up([size for sizes in parts.values() for size in sizes])
    print_row(name, size, aim)
    if len(parts) > 1:
        for part, sizes in sorted(parts.items()):
            print_row(f'  {part}', add_up(sizes))
    return size


def source_files(folder: Path) -> list[Path]:
    """List the source files below `folder`, but no links: they stand for files of other rooms."""
    return [
        path for path in folder.rglob('*') if path.suffix in SUFFIXES and path.resolve() == path
    ]


def measure(path: Path) -> Size:
    """Count the lines of a file and, if it is Python, its statements."""
    text = path.read_text()
    lines = len(text.splitlines())
    statements = count_statements(text) if path.suffix == '.py' else 0
    return Size(lines, lines if path.suffix == '.cpp' else 0, statements)


def count_statements(source: str) -> int:
    """Count Python statements, except those that are only a string (docstrings)."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    values = [node.value for node in nodes if isinstance(node, ast.Expr)]
    strings = [v for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    return len(nodes) - len(strings)


def add_up(sizes: list[Size]) -> Size:
    """Add sizes up."""
    return Size(*(sum(column) for column in zip(*sizes, strict=True)))


def print_row(name: str, size: Size, aim: int | None = None) -> None:
    """Print one line of the table."""
    cpp, goal = size.cpp_lines or '', '' if aim is None else aim
    print(f'{name:<36}{size.lines:>8}{goal:>8}{cpp:>8}{size.statements:>12}')


if __name__ == '__main__':
    main()
