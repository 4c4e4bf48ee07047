"""The inference APIs, inferencers and analysis tools of mmseg and mmdet work with our models."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from PIL import Image

from tests.tools.conftest import ROOT, Trained, run

mmseg = pytest.importorskip('mmseg')
ANALYSIS = Path(mmseg.__file__).parent / '.mim/tools/analysis_tools'
PHOTOS = sorted((ROOT / 'data/tiny/coco/img/val').iterdir())[:2]
SIZES = [np.asarray(Image.open(photo)).shape[:2] for photo in PHOTOS]
NUM_CLASSES, THING_IDS = 11, range(5)

pytestmark = [
    # Of the inferencers and mmdet's visualizer.
    pytest.mark.filterwarnings('ignore:Failed to add <class'),
    pytest.mark.filterwarnings('ignore:__array_wrap__ must accept context'),
    pytest.mark.filterwarnings('ignore:`Visualizer` backend is not initialized'),
    pytest.mark.filterwarnings(r'ignore:Warning. The (bbox|polygon) is out of bounds'),
]


@pytest.fixture
def photo(trained: Trained) -> str:
    return str(sorted((trained.folder / 'images/validation').iterdir())[0])


def test_mmsegs_inference_api(trained: Trained, photo):
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


def test_mmsegs_inferencer(trained: Trained, photo, tmp_path):
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
def test_mmsegs_get_flops(row):
    # In a process of its own: sizes are traced as tensors, which the shape checker refuses.
    command = [sys.executable, ANALYSIS / 'get_flops.py', row, '--shape', '64', '64']
    done = run(*command, cwd=row.parent)
    assert done.returncode == 0, done.stdout
    assert 'Flops:' in done.stdout
    assert 'Params:' in done.stdout


def test_mmsegs_analyze_logs(trained: Trained, call, tmp_path, monkeypatch):
    [log] = (trained.folder / 'work_dirs/row').glob('*/vis_data/scalars.json')
    # The script imports seaborn for the style of the curve only: not worth an installation.
    seaborn = SimpleNamespace(set_style=lambda style: None)
    monkeypatch.setitem(sys.modules, 'seaborn', seaborn)
    keys = ['--keys', 'decode.loss_mask', '--out', tmp_path / 'curve.png']
    call(ANALYSIS / 'analyze_logs.py', log, *keys)
    assert (tmp_path / 'curve.png').is_file()


@pytest.fixture(scope='module')
def files(panoptic_row: Path) -> tuple[str, str]:
    """A panoptic config and a checkpoint with the meta data that mmdet's inference asks for."""
    checkpoint = torch.load(panoptic_row.with_suffix('.pth'), weights_only=False)
    classes = [f'class {index}' for index in range(NUM_CLASSES)]
    palette = [(20 * index, 0, 0) for index in range(NUM_CLASSES)]
    checkpoint['meta']['dataset_meta'] = {'classes': classes, 'palette': palette}
    path = panoptic_row.with_name('meta.pth')
    torch.save(checkpoint, path)
    return str(panoptic_row), str(path)


@pytest.fixture
def inferencer(files):
    from mmdet.apis import DetInferencer

    return DetInferencer(*files, device='cpu', show_progress=False)


def test_mmdets_inference_api(files):
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(*files, device='cpu')
    assert len(model.dataset_meta['classes']) == NUM_CLASSES
    loading = model.cfg.test_dataloader.dataset.pipeline[:-1]
    stock = Compose([*loading, {'type': 'PackDetInputs'}])
    from_file = inference_detector(model, [str(photo) for photo in PHOTOS])
    from_array = inference_detector(model, np.array(Image.open(PHOTOS[0]))[..., ::-1])
    with_stock_pipeline = inference_detector(model, str(PHOTOS[0]), test_pipeline=stock)
    results = [*from_file, from_array, with_stock_pipeline]
    for result, size in zip(results, [*SIZES, SIZES[0], SIZES[0]], strict=True):
        assert result.pred_instances.masks.shape[1:] == size
        assert set(result.pred_instances.labels.tolist()) <= set(THING_IDS)
        assert result.pred_panoptic_seg.sem_seg.shape == (1, *size)
        assert result.pred_sem_seg.sem_seg.shape == (1, *size)


def test_mmdets_inferencer(inferencer, tmp_path):
    """All three results of a batch, drawn and saved, without panopticapi."""
    photos = [str(photo) for photo in PHOTOS]
    result = inferencer(photos, batch_size=2, no_save_pred=False, out_dir=str(tmp_path))
    for photo, size in zip(PHOTOS, SIZES, strict=True):
        saved = json.loads((tmp_path / f'preds/{photo.stem}.json').read_text())
        assert len(saved['labels']) == len(saved['masks']) > 0
        for name in (f'vis/{photo.name}', f'preds/{photo.stem}_panoptic_seg.png'):
            with Image.open(tmp_path / name) as image:
                assert image.size[::-1] == size
    assert len(result['predictions']) == 2


def test_mmdets_inferencer_colors_are_the_ids(inferencer):
    photo = str(PHOTOS[0])
    [prediction] = inferencer(photo, return_datasamples=True)['predictions']
    encoded = prediction.pred_panoptic_seg.sem_seg[0].numpy()
    assert (encoded >= 1000).any(), 'no thing survived'
    assert (encoded == NUM_CLASSES).any(), 'no void'
    colors = inferencer(photo)['predictions'][0]['panoptic_seg'].astype(int)
    ids = colors @ [1, 256, 256**2]
    assert np.array_equal(ids, np.where(encoded == NUM_CLASSES, 0, encoded))


def test_mmdets_inferencer_draws_above_the_score_threshold_only(inferencer):
    photo = str(PHOTOS[0])
    # The other results are not drawn by score, so they would hide what is tested.
    inferencer.model.test_cfg = {'semantic_on': False, 'panoptic_on': False}
    options = {'return_vis': True, 'no_save_vis': True}
    [everything] = inferencer(photo, pred_score_thr=0.0, **options)['visualization']
    [nothing] = inferencer(photo, pred_score_thr=1.0, **options)['visualization']
    original = np.array(Image.open(photo).convert('RGB'))
    assert np.abs(nothing.astype(int) - original).mean() < 3  # the decoders differ by rounding
    assert np.abs(everything.astype(int) - original).mean() > 10


def test_mmdets_inferencer_draws_an_empty_map_and_takes_a_palette_by_name(files):
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(*files, device='cpu', palette='random', show_progress=False)
    inferencer.model.test_cfg = {'object_mask_thr': 1.0, 'semantic_on': False}
    result = inferencer(str(PHOTOS[0]), pred_score_thr=1.0, return_vis=True)
    assert result['visualization'][0].shape == (*SIZES[0], 3)
    assert not result['predictions'][0]['panoptic_seg'].any()


def test_panopticapi_is_left_alone_where_it_is_installed(inferencer, monkeypatch):
    from mmseg_m2f.adapters.models.detector import replace_panopticapi

    module, theirs = sys.modules['mmdet.apis.det_inferencer'], object()
    monkeypatch.setattr(module, 'VOID', 0)
    monkeypatch.setattr(module, 'id2rgb', theirs)
    replace_panopticapi()
    assert module.id2rgb is theirs
