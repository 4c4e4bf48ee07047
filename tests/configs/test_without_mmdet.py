"""Semantic rows need neither mmdet nor, on the onedl stack, mmcv's compiled operators."""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.configs.rows import CONFIGS, ONE_PER_FAMILY, REPOSITORY, SEMANTIC_ROWS

pytest.importorskip('mmseg')

# One process for all rows: the imports take longer than a row. None in sys.modules makes the
# import of that name fail.
SCRIPT = """
import json, sys, tempfile
from pathlib import Path
blocked, data_root, rows = json.loads(sys.argv[1])
sys.modules[blocked] = None
from mmengine import Config
from tests.configs.rows import load, parse
from tests.reduced import reduce_config, train_and_test
metrics = {}
for row in rows:
    cfg = reduce_config(load(row), Path(data_root, parse(row).dataset))
    metrics[row] = float(train_and_test(cfg)['mIoU'])
assert sys.modules[blocked] is None
Path(data_root, 'metrics.json').write_text(json.dumps(metrics))
"""


def is_onedl() -> bool:
    return any(d.metadata['Name'] == 'onedl-mmcv' for d in distributions())


def run_without(blocked: str, rows: list[str], data_root: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, json.dumps([blocked, str(data_root), rows])],
        cwd=REPOSITORY,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((data_root / 'metrics.json').read_text())


def test_every_row_without_mmdet(tmp_path):
    assert CONFIGS.is_dir()
    assert sorted(run_without('mmdet', SEMANTIC_ROWS, tmp_path)) == SEMANTIC_ROWS


@pytest.mark.skipif(not is_onedl(), reason='upstream mmcv needs its compiled operators')
@pytest.mark.parametrize(
    'rows', [ONE_PER_FAMILY, pytest.param(SEMANTIC_ROWS, marks=pytest.mark.long)]
)
def test_rows_without_compiled_operators(rows, tmp_path):
    assert sorted(run_without('mmcv._ext', rows, tmp_path)) == sorted(rows)
