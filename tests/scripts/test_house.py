"""The script that prints how large the rooms are."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / 'scripts/house.py'


def test_every_line_of_the_package_is_counted_once():
    command = [sys.executable, str(SCRIPT)]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = {row[:36].rstrip(): int(row[36:44]) for row in rows[1:] if row.strip()}
    package = Path(SCRIPT.parents[1], 'mmseg_m2f')
    files = [*package.rglob('*.py'), *package.rglob('*.cpp')]
    # The links below .mim show the configs and tools of the repository.
    own = [path for path in files if '.mim' not in path.parts]
    assert lines['package'] == sum(len(path.read_text().splitlines()) for path in own)
    names = list(lines)
    rooms = [name for name in names[: names.index('package')] if not name.startswith(' ')]
    assert lines['package'] == sum(lines[name] for name in rooms)
