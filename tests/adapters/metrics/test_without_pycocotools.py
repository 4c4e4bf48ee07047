"""Semantic models work without pycocotools: it is imported where it is used."""

import subprocess
import sys

SCRIPT = "import sys; sys.modules['pycocotools'] = None; import mmseg_m2f.adapters"


def test_the_adapters_import_without_pycocotools():
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
