"""Semantic rows need neither mmdet nor, on the onedl stack, mmcv's compiled operators."""

from importlib.metadata import distributions

import pytest

from tests.configs.blocked import run_without
from tests.configs.rows import CONFIGS, ONE_PER_FAMILY, SEMANTIC_ROWS

pytest.importorskip('mmseg')


def is_onedl() -> bool:
    return any(d.metadata['Name'] == 'onedl-mmcv' for d in distributions())


def test_every_row_without_mmdet(tmp_path):
    assert CONFIGS.is_dir()
    assert sorted(run_without('mmdet', SEMANTIC_ROWS, tmp_path)) == SEMANTIC_ROWS


@pytest.mark.skipif(not is_onedl(), reason='upstream mmcv needs its compiled operators')
@pytest.mark.parametrize(
    'rows', [ONE_PER_FAMILY, pytest.param(SEMANTIC_ROWS, marks=pytest.mark.long)]
)
def test_rows_without_compiled_operators(rows, tmp_path):
    assert sorted(run_without('mmcv._ext', rows, tmp_path)) == sorted(rows)
