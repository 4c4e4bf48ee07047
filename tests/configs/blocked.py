"""Runs reduced rows in a process where one import fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.configs.rows import REPOSITORY

# One process for all rows: the imports take longer than a row. None in sys.modules makes the
# import of that name fail.
SCRIPT = """
import json, sys
from pathlib import Path
blocked, data_root, rows = json.loads(sys.argv[1])
sys.modules[blocked] = None
from tests.configs.rows import load, parse
from tests.reduced import reduce_config, train_and_test
metrics = {}
for row in rows:
    cfg = reduce_config(load(row), Path(data_root, parse(row).dataset))
    metrics[row] = float(train_and_test(cfg)[cfg.default_hooks.checkpoint.save_best])
assert sys.modules[blocked] is None
Path(data_root, 'metrics.json').write_text(json.dumps(metrics))
"""


def run_without(blocked: str, rows: list[str], data_root: Path) -> dict[str, float]:
    """Trains and tests the rows without the module ``blocked``; the main metric of each."""
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, json.dumps([blocked, str(data_root), rows])],
        cwd=REPOSITORY,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((data_root / 'metrics.json').read_text())
