"""Print the lines and statements of each room of the repository, beside the aims.

    python scripts/house.py

Lines are those of the files, blank lines and docstrings included; "of C++" is a part of them.
Statements are Python's, without docstrings: packing two into one line lowers only the lines.
"""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = ('.py', '.cpp', '.sh')

# Name, folders and aim in lines. A file belongs to the first room that has its folder.
Rooms = list[tuple[str, list[str], 'int | str']]
PACKAGE: Rooms = [
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
    ('rest of the package', ['mmseg_m2f'], ''),
]
PACKAGE_AIM = 14000
OTHERS: Rooms = [
    ('tools and scripts', ['tools', 'scripts'], 4800),
    ('tests', ['tests'], 19000),
    ('configs', ['configs'], ''),
]


def main() -> None:
    """Print the table."""
    print(f'{"room":<36}{"lines":>8}{"aim":>8}{"of C++":>8}{"statements":>12}')
    seen: set[Path] = set()
    sizes = [print_room(name, folders, aim, seen) for name, folders, aim in PACKAGE]
    print_row('package', sum(sizes, Counter()), PACKAGE_AIM)
    print()
    for name, folders, aim in OTHERS:
        print_room(name, folders, aim, seen)


def print_room(name: str, folders: list[str], aim: int | str, seen: set[Path]) -> Counter[str]:
    """Print a room and the folders in it. Leave out the files in `seen`, and add the new ones."""
    parts: dict[str, Counter[str]] = {}
    for folder in folders:
        for path in (ROOT / folder).rglob('*'):
            # Links stand for files of other rooms.
            if path.suffix in SUFFIXES and path.resolve() == path and path not in seen:
                seen.add(path)
                inside = path.relative_to(ROOT / folder).parts[:-1]
                part = inside[0] if inside else 'its own files'
                if len(folders) > 1:
                    part = folder
                parts[part] = parts.get(part, Counter()) + measure(path)
    size = sum(parts.values(), Counter())
    print_row(name, size, aim)
    if len(parts) > 1:
        for part in sorted(parts):
            print_row(f'  {part}', parts[part])
    return size


def measure(path: Path) -> Counter[str]:
    """Count the lines of a file and, if it is Python, its statements but for docstrings."""
    text = path.read_text()
    lines = len(text.splitlines())
    if path.suffix != '.py':
        return Counter(lines=lines, cpp=lines if path.suffix == '.cpp' else 0)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    values = [node.value for node in nodes if isinstance(node, ast.Expr)]
    strings = [v for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    return Counter(lines=lines, statements=len(nodes) - len(strings))


def print_row(name: str, size: Counter[str], aim: int | str = '') -> None:
    """Print one line of the table."""
    numbers = f'{size["lines"]:>8}{aim:>8}{size["cpp"] or "":>8}{size["statements"]:>12}'
    print(f'{name:<36}{numbers}')


if __name__ == '__main__':
    main()
