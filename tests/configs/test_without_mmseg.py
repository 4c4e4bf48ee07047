"""Instance and panoptic rows need no mmseg."""

import pytest

from tests.configs.blocked import run_without
from tests.configs.rows import DETECTOR_ROWS

pytest.importorskip('mmdet')


def test_every_row_without_mmseg(tmp_path):
    metrics = run_without('mmseg', DETECTOR_ROWS, tmp_path)
    assert sorted(metrics) == DETECTOR_ROWS
