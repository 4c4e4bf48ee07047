"""Rows run in a process where a package that they do not need cannot be imported."""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.configs.rows import DETECTOR_ROWS, ONE_PER_FAMILY, REPOSITORY, SEMANTIC_ROWS

IS_ONEDL = any(d.metadata['Name'] == 'onedl-mmcv' for d in distributions())
upstream = pytest.mark.skipif(not IS_ONEDL, reason='upstream mmcv needs its compiled operators')
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


@pytest.mark.parametrize(
    ('needed', 'blocked', 'rows'),
    [
        ('mmseg', 'mmdet', SEMANTIC_ROWS),
        ('mmdet', 'mmseg', DETECTOR_ROWS),
        pytest.param('mmseg', 'mmcv._ext', ONE_PER_FAMILY, marks=upstream),
        pytest.param('mmseg', 'mmcv._ext', SEMANTIC_ROWS, marks=[upstream, pytest.mark.long]),
    ],
)
def test_rows_train_and_test_without(
    needed: str, blocked: str, rows: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(needed)
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, json.dumps([blocked, str(tmp_path), rows])],
        cwd=REPOSITORY,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(json.loads((tmp_path / 'metrics.json').read_text())) == sorted(rows)
