"""The demo's own arithmetic, and with ``-m long`` the demo itself with few iterations."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from tests.tools.conftest import TOOLS, run_tool


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import demo

    return demo


def test_confusion_leaves_ignored_pixels_out(demo, tmp_path):
    for name, rows in (('truth', [[0, 1], [1, 255]]), ('predicted', [[0, 0], [1, 1]])):
        (tmp_path / name).mkdir()
        Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / name / 'a.png')
    confusion = demo.confusion_matrix(tmp_path / 'truth', tmp_path / 'predicted', 2)
    assert confusion.tolist() == [[1, 0], [1, 1]]


def test_per_class_table_by_hand(demo, tmp_path):
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    demo.write_per_class(tmp_path / 'table.csv', ['wall', 'sky', 'tree'], confusion)
    with (tmp_path / 'table.csv').open() as file:
        rows = list(csv.reader(file))
    assert rows[1] == ['wall', f'{6 / 9:.4f}', '0.7500', f'{8 / 12:.4f}']
    assert rows[2] == ['sky', '0.5000', '0.7500', f'{4 / 12:.4f}']
    assert rows[3] == ['tree', 'nan', 'nan', '0.0000']


def test_best_constant_by_hand(demo):
    """Class 0 everywhere: IoU 8/12 for it and 0 for the other class that occurs."""
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    assert demo.best_constant(confusion) == pytest.approx(8 / 12 / 2)


def test_progress_is_read_from_mmengines_lines(demo):
    line = (
        '11/21 09:45:06 - mmengine - INFO - Iter(train) [ 20/700]  base_lr: 4.0e-04 lr: 4.0e-04  '
        'eta: 0:03:51  time: 0.34  data_time: 0.01  loss: 31.2042  decode.loss_cls: 2.1'
    )
    assert demo.ITERATION.search(line).groups() == ('20', '700', '0:03:51', '31.2042')


def test_the_peer_is_left_out_for_a_stated_reason(demo, monkeypatch):
    assert demo.why_no_peer(skip=True) == '--skip-peer was given'
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    monkeypatch.setattr(demo, 'find_spec', lambda name: None)
    assert 'mmdet is not installed' in demo.why_no_peer(skip=False)


def test_a_failing_tool_ends_the_demo_with_the_end_of_its_output(demo, tmp_path):
    with pytest.raises(demo.DemoError, match='unrecognized arguments: --no'):
        demo.run(['tools/train.py', 'x.py', '--no'], tmp_path / 'train.log')


@pytest.mark.long
def test_the_demo_writes_what_it_promises(tmp_path):
    output = run_tool('demo.py', '--iterations', '20', '--work-dir', tmp_path, cwd=tmp_path)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['best_constant_mIoU'] == pytest.approx(0.03, abs=0.02)
    with (tmp_path / 'per_class.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    mean = np.nanmean([float(row['IoU']) for row in rows])
    assert mean == pytest.approx(metrics['mask2former']['mIoU'], abs=2e-4)
    pictures = list((tmp_path / 'pictures').glob('*.png'))
    assert len(pictures) == 12
    with Image.open(pictures[0]) as picture:
        assert picture.width == 3 * 384
    assert 'mIoU' in metrics['mmseg'] or 'left_out' in metrics['mmseg']
    assert str(tmp_path / 'pictures') in output
