"""mmseg's inference API, inferencer and analysis tools work with our models."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.tools.conftest import Trained, run

mmseg = pytest.importorskip('mmseg')
ANALYSIS = Path(mmseg.__file__).parent / '.mim/tools/analysis_tools'


@pytest.fixture
def photo(trained: Trained) -> str:
    return str(sorted((trained.folder / 'images/validation').iterdir())[0])


def test_inference_api(trained: Trained, photo):
    from mmseg.apis import inference_model, init_model

    model = init_model(str(trained.config), str(trained.checkpoint), device='cpu')
    assert len(model.dataset_meta['classes']) == 150
    labels = inference_model(model, photo).pred_sem_seg.data
    assert labels.shape == (1, 72, 96)
    model.keep_score_maps()
    result = inference_model(model, photo)
    assert result.seg_logits.data.shape == (150, 72, 96)
    assert torch.equal(result.pred_sem_seg.data, result.seg_logits.data.argmax(0, keepdim=True))
    assert (result.pred_sem_seg.data == labels).float().mean() > 0.99


@pytest.mark.filterwarnings('ignore:Failed to add <class')
def test_inferencer(trained: Trained, photo, tmp_path):
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(str(trained.config), str(trained.checkpoint), device='cpu')
    result = inferencer(photo, out_dir=str(tmp_path), show=False)
    assert np.shape(result['predictions']) == (72, 96)
    assert list(tmp_path.glob('vis/*'))
    assert list(tmp_path.glob('pred/*'))


@pytest.mark.skipif(
    mmseg.__version__ < '1.4',
    reason='get_flops of mmseg 1.2.2 stops for every model with mmengine 0.10.7',
)
def test_get_flops(row):
    # In a process of its own: sizes are traced as tensors, which the shape checker refuses.
    command = [sys.executable, ANALYSIS / 'get_flops.py', row, '--shape', '64', '64']
    done = run(*command, cwd=row.parent)
    assert done.returncode == 0, done.stdout
    assert 'Flops:' in done.stdout
    assert 'Params:' in done.stdout


def test_analyze_logs(trained: Trained, call, tmp_path, monkeypatch):
    [log] = (trained.folder / 'work_dirs/row').glob('*/vis_data/scalars.json')
    # The script imports seaborn for the style of the curve only: not worth an installation.
    seaborn = SimpleNamespace(set_style=lambda style: None)
    monkeypatch.setitem(sys.modules, 'seaborn', seaborn)
    keys = ['--keys', 'decode.loss_mask', '--out', tmp_path / 'curve.png']
    call(ANALYSIS / 'analyze_logs.py', log, *keys)
    assert (tmp_path / 'curve.png').is_file()
