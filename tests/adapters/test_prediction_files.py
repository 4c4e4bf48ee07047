import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from mmseg_m2f.adapters.prediction_files import DrawPredictionsHook, SaveLabelMapsHook

CLASSES = ['wall', 'sky', 'tree']
PALETTE = [[255, 0, 0], [0, 0, 255], [0, 255, 0]]


class Dataset:
    def __init__(self, folder, classes=CLASSES, palette=PALETTE):
        self.metainfo = {'classes': classes, 'palette': palette} if classes else {}
        self.data_prefix = {'img_path': str(folder)}


class Runner:
    def __init__(self, dataset):
        self.test_dataloader = self
        self.dataset = dataset


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photos/town/a.b.jpg'
    path.parent.mkdir(parents=True)
    Image.new('RGB', (400, 200), (200, 200, 200)).save(path)
    return path


def sample(photo, truth=None, **metainfo):
    """The left half is predicted as class 2, the right half as class 0."""
    label_map = torch.zeros(1, 200, 400, dtype=torch.int64)
    label_map[..., :200] = 2
    element = BaseDataElement(metainfo={'img_path': str(photo), **metainfo})
    element.pred_sem_seg = PixelData(data=label_map)
    if truth is not None:
        element.gt_sem_seg = PixelData(data=truth)
    return element


@pytest.mark.parametrize(('shifted', 'expected'), [(False, [0, 2]), (True, [1, 3])])
def test_label_maps_keep_name_folder_and_the_datasets_labels(photo, tmp_path, shifted, expected):
    hook = SaveLabelMapsHook(str(tmp_path / 'out'))
    runner = Runner(Dataset(tmp_path / 'photos'))
    hook.after_test_iter(runner, 0, outputs=[sample(photo, reduce_zero_label=shifted)])
    saved = read(tmp_path / 'out/town/a.b.png')
    assert saved.dtype == np.uint8
    assert saved.shape == (200, 400)
    assert np.unique(saved).tolist() == expected
    assert saved[0, 0] == expected[1]


def test_many_classes_need_16_bits(photo, tmp_path):
    runner = Runner(Dataset(tmp_path / 'elsewhere', classes=['x'] * 300, palette=[[0, 0, 0]] * 300))
    element = sample(photo)
    element.pred_sem_seg.data[..., 0] = 299
    SaveLabelMapsHook(str(tmp_path)).after_test_iter(runner, 0, outputs=[element])
    assert read(tmp_path / 'a.b.png').max() == 299


def test_pictures_show_the_truth_beside_the_prediction_if_there_is_any(photo, tmp_path):
    runner = Runner(Dataset(tmp_path / 'photos'))
    for name, truth, columns in (('a', None, 2), ('b', torch.ones(1, 200, 400), 3)):
        hook = DrawPredictionsHook(str(tmp_path / name))
        hook.after_test_iter(runner, 0, outputs=[sample(photo, truth)])
        assert read(tmp_path / name / 'town/a.b.png').shape[1] == columns * 400


def test_names_and_colours_of_the_checkpoint_serve_a_dataset_without(photo, tmp_path):
    hook = DrawPredictionsHook(str(tmp_path / 'out'))
    meta = {'dataset_meta': {'classes': CLASSES, 'palette': PALETTE}}
    hook.after_load_checkpoint(None, {'meta': meta})
    runner = Runner(Dataset(tmp_path / 'photos', classes=None))
    hook.after_test_iter(runner, 0, outputs=[sample(photo)])
    assert (tmp_path / 'out/town/a.b.png').is_file()
