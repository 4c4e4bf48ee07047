"""mmdet's inference API, inferencer and visualizer work with our models."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

mmdet = pytest.importorskip('mmdet')
from mmdet.apis import DetInferencer, inference_detector, init_detector  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402

from mmseg_m2f.metadata import load_metadata  # noqa: E402
from tests.parity.parity_weights import tell_queries_apart  # noqa: E402
from tests.reduced import HEAD, REPOSITORY  # noqa: E402

PHOTOS = sorted((REPOSITORY / 'data/tiny/coco/img/val').iterdir())[:2]
SIZES = [np.asarray(Image.open(photo)).shape[:2] for photo in PHOTOS]
CLASSES = load_metadata('coco_panoptic').classes
LOADING = [
    {'type': 'LoadImageFromFile'},
    {'type': 'Resize', 'scale': (128, 96), 'keep_ratio': True},
]
# Any classes may be things.
THING_IDS = list(range(1, len(CLASSES), 2))

CONFIG = {
    'default_scope': 'mmdet',
    'custom_imports': {'imports': ['mmseg_m2f.adapters']},
    'model': {
        'type': 'mmseg_m2f.Mask2Former',
        'data_preprocessor': {
            'type': 'DetDataPreprocessor',
            'mean': [123.675, 116.28, 103.53],
            'std': [58.395, 57.12, 57.375],
            'bgr_to_rgb': True,
            'pad_size_divisor': 32,
        },
        'backbone': {'type': 'ResNet', 'depth': 18, 'base_channels': 8},
        'panoptic_head': {
            'type': 'mmseg_m2f.Mask2FormerUniversalHead',
            'num_classes': len(CLASSES),
            'thing_ids': THING_IDS,
            'in_channels': [8, 16, 32, 64],
            **HEAD,
            'num_queries': 20,
        },
        'test_cfg': {'object_mask_thr': 0.2, 'overlap_thr': 0.0, 'max_per_image': 10},
    },
    'test_dataloader': {
        'dataset': {
            'type': 'mmseg_m2f.PanopticDataset',
            'metadata': 'coco_panoptic',
            'ann_file': 'nowhere.json',
            'data_prefix': {'img': '', 'seg': ''},
            'pipeline': [*LOADING, {'type': 'mmseg_m2f.PackSegments'}],
        }
    },
    'visualizer': {'type': 'mmseg_m2f.Mask2FormerVisualizer', 'name': 'visualizer'},
}

pytestmark = [
    # Of mmdet's inferencer and visualizer.
    pytest.mark.filterwarnings('ignore:Failed to add <class'),
    pytest.mark.filterwarnings('ignore:__array_wrap__ must accept context'),
    pytest.mark.filterwarnings('ignore:`Visualizer` backend is not initialized'),
    pytest.mark.filterwarnings(r'ignore:Warning. The (bbox|polygon) is out of bounds'),
]


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A config file and a checkpoint of random weights that are sure of something."""
    folder = tmp_path_factory.mktemp('detector')
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(CONFIG['model'])
    image = np.array(Image.open(PHOTOS[0]).resize((128, 96)))[..., ::-1].copy()
    tell_queries_apart(model, {'inputs': [torch.from_numpy(image).permute(2, 0, 1)]}, factor=12)
    Config(CONFIG).dump(folder / 'detector.py')
    meta = {'dataset_meta': {'classes': CLASSES}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'detector.pth')
    return str(folder / 'detector.py'), str(folder / 'detector.pth')


@pytest.fixture
def inferencer(files: tuple[str, str]) -> DetInferencer:
    return DetInferencer(*files, device='cpu', show_progress=False)


def test_inference_api(files: tuple[str, str]) -> None:
    model = init_detector(*files, device='cpu')
    assert model.dataset_meta['classes'] == CLASSES
    from_file = inference_detector(model, [str(photo) for photo in PHOTOS])
    from_array = inference_detector(model, np.array(Image.open(PHOTOS[0]))[..., ::-1])
    stock = Compose([*LOADING, {'type': 'PackDetInputs'}])
    with_stock_pipeline = inference_detector(model, str(PHOTOS[0]), test_pipeline=stock)
    results = [*from_file, from_array, with_stock_pipeline]
    for result, size in zip(results, [*SIZES, SIZES[0], SIZES[0]], strict=True):
        assert result.pred_instances.masks.shape[1:] == size
        assert set(result.pred_instances.labels.tolist()) <= set(THING_IDS)
        assert result.pred_panoptic_seg.sem_seg.shape == (1, *size)
        assert result.pred_sem_seg.sem_seg.shape == (1, *size)


def test_inferencer(inferencer: DetInferencer, tmp_path: Path) -> None:
    """All three results of a batch, drawn and saved, without panopticapi."""
    photos = [str(photo) for photo in PHOTOS]
    result = inferencer(photos, batch_size=2, no_save_pred=False, out_dir=str(tmp_path))
    for photo, size in zip(PHOTOS, SIZES, strict=True):
        with Image.open(tmp_path / f'vis/{photo.name}') as drawn:
            assert drawn.size[::-1] == size
        saved = json.loads((tmp_path / f'preds/{photo.stem}.json').read_text())
        assert len(saved['labels']) == len(saved['masks']) > 0
        with Image.open(tmp_path / f'preds/{photo.stem}_panoptic_seg.png') as panoptic:
            assert panoptic.size[::-1] == size
    assert len(result['predictions']) == 2


def test_inferencer_colors_are_the_ids(inferencer: DetInferencer) -> None:
    photo = str(PHOTOS[0])
    [prediction] = inferencer(photo, return_datasamples=True)['predictions']
    encoded = prediction.pred_panoptic_seg.sem_seg[0].numpy()
    assert (encoded >= 1000).any(), 'no thing survived'
    assert (encoded == len(CLASSES)).any(), 'no void'
    colors = inferencer(photo)['predictions'][0]['panoptic_seg'].astype(int)
    ids = colors @ [1, 256, 256**2]
    assert np.array_equal(ids, np.where(encoded == len(CLASSES), 0, encoded))


def test_inferencer_draws_above_the_score_threshold_only(inferencer: DetInferencer) -> None:
    photo = str(PHOTOS[0])
    # The other results are not drawn by score, so they would hide what is tested.
    inferencer.model.test_cfg = {'semantic_on': False, 'panoptic_on': False}
    options = {'return_vis': True, 'no_save_vis': True}
    [everything] = inferencer(photo, pred_score_thr=0.0, **options)['visualization']
    [nothing] = inferencer(photo, pred_score_thr=1.0, **options)['visualization']
    original = np.array(Image.open(photo).convert('RGB'))
    assert np.abs(nothing.astype(int) - original).mean() < 3  # the decoders differ by rounding
    assert np.abs(everything.astype(int) - original).mean() > 10


def test_an_empty_panoptic_map_is_drawn(inferencer: DetInferencer) -> None:
    inferencer.model.test_cfg = {'object_mask_thr': 1.0, 'semantic_on': False}
    result = inferencer(str(PHOTOS[0]), pred_score_thr=1.0, return_vis=True)
    assert result['visualization'][0].shape == (*SIZES[0], 3)
    assert not result['predictions'][0]['panoptic_seg'].any()


def test_a_palette_may_be_a_name(files: tuple[str, str]) -> None:
    inferencer = DetInferencer(*files, device='cpu', palette='random', show_progress=False)
    result = inferencer(str(PHOTOS[0]), return_vis=True)
    assert result['visualization'][0].shape == (*SIZES[0], 3)


def test_panopticapi_is_left_alone_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmseg_m2f.adapters.models.detector import replace_panopticapi

    module = sys.modules['mmdet.apis.det_inferencer']
    theirs = object()
    monkeypatch.setattr(module, 'VOID', 0)
    monkeypatch.setattr(module, 'id2rgb', theirs)
    replace_panopticapi()
    assert module.id2rgb is theirs
