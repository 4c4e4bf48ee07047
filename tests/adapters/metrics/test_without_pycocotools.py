"""Semantic models work without pycocotools; parts that need it say so."""

import subprocess
import sys

SCRIPT = """
import sys
sys.modules['pycocotools'] = None
import mmseg_m2f.adapters
from mmseg_m2f.registry import METRICS
try:
    METRICS.build({'type': 'InstanceMetric'})
except ImportError as error:
    assert 'pip install pycocotools' in str(error), error
else:
    raise AssertionError('InstanceMetric was built')
"""


def test_the_adapters_import_without_pycocotools():
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
