"""Every row trains and tests, in a process where a package that it does not need is missing."""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions

import pytest

from tests.configs.rows import DETECTOR_ROWS, KINDS, MAIN_NUMBER, REPOSITORY, SEMANTIC_ROWS, parse

IS_ONEDL = any(d.metadata['Name'] == 'onedl-mmcv' for d in distributions())
upstream = pytest.mark.skipif(not IS_ONEDL, reason='upstream mmcv needs its compiled operators')
# One ResNet and one Swin, both recipes, the datasets.
ONE_PER_FAMILY = [
    'mask2former_r50_ade20k',
    'mask2former_r101_cityscapes_mmseg',
    'mask2former_swin-t_cityscapes',
    'mask2former_swin-b-in22k_ade20k_mmseg',
    'mask2former_r50_mapillary',
]
# One process for all rows: the imports take longer than a row. None in sys.modules makes the
# import of that name fail. Reduced rows have the types of the rows, except for the weights.
SCRIPT = """
import json, sys
from pathlib import Path
blocked, data_root, rows = json.loads(sys.argv[1])
sys.modules[blocked] = None
from tests.configs.rows import load, parse
from tests.reduced import reduce_config, train_and_test

def types(node):
    if isinstance(node, dict):
        own = [node['type']] if 'type' in node else []
        return own + [t for key in sorted(node) if key != 'init_cfg' for t in types(node[key])]
    return [t for value in node for t in types(value)] if isinstance(node, list | tuple) else []

reported = {}
for row in rows:
    cfg = reduce_config(load(row), Path(data_root, parse(row).dataset))
    assert types(cfg.model) == types(load(row).model)
    assert types(cfg.train_dataloader) == types(load(row).train_dataloader)
    reported[row] = list(train_and_test(cfg))
    assert Path(cfg.work_dir, 'iter_2.pth').exists()
assert sys.modules[blocked] is None
Path(data_root, 'reported.json').write_text(json.dumps(reported))
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
def test_rows_train_and_test_without(needed, blocked, rows, tmp_path):
    pytest.importorskip(needed)
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, json.dumps([blocked, str(tmp_path), rows])],
        cwd=REPOSITORY,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reported = json.loads((tmp_path / 'reported.json').read_text())
    assert list(reported) == rows
    for row in rows:
        _, metrics = KINDS[parse(row).kind]
        assert {MAIN_NUMBER[metric] for metric in metrics} <= set(reported[row]), row
