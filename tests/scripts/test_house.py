"""The script that prints how large the rooms are."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_line_of_the_package_is_counted_once():
    table = subprocess.check_output([sys.executable, str(ROOT / 'scripts/house.py')], text=True)
    rows = [row for row in table.splitlines()[1:] if row.strip()]
    lines = {row[:36].rstrip(): int(row[36:44]) for row in rows}
    files = [path for path in (ROOT / 'mmseg_m2f').rglob('*') if path.suffix in ('.py', '.cpp')]
    # The links below .mim show the configs and tools of the repository.
    own = [path for path in files if '.mim' not in path.parts]
    assert lines['package'] == sum(len(path.read_text().splitlines()) for path in own)
    names = list(lines)
    rooms = [name for name in names[: names.index('package')] if not name.startswith(' ')]
    assert lines['package'] == sum(lines[name] for name in rooms)
