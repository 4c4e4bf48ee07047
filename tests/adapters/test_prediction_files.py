import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from mmseg_m2f.adapters.prediction_files import (
    LINE_HEIGHT,
    OPACITY,
    DrawPredictionsHook,
    Panel,
    SaveLabelMapsHook,
    draw_panels,
)

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


def test_colours_are_the_palettes_and_ignored_pixels_dark():
    photo = np.full((100, 400, 3), 100, np.uint8)
    label_map = np.zeros((100, 400), np.int64)
    label_map[:, 100:200], label_map[:, 200:300] = 1, 255
    picture = np.asarray(draw_panels(photo, [Panel('prediction', label_map)], CLASSES, PALETTE))
    row = picture[LINE_HEIGHT + 50, 400:]
    photo_share = round(100 * (1 - OPACITY))
    for column, color in ((50, PALETTE[0]), (150, PALETTE[1]), (250, (0, 0, 0))):
        expected = np.array(color) * OPACITY + photo_share
        np.testing.assert_allclose(row[column], expected, atol=1)
    # The photo itself stays as it is, and the legend has the two classes that occur.
    assert (picture[LINE_HEIGHT + 50, 200] == 100).all()
    legend = picture[LINE_HEIGHT + 100 :].reshape(-1, 3)
    found = [(legend == color).all(1).any() for color in PALETTE]
    assert found == [True, True, False]


def test_a_long_legend_breaks_into_lines():
    photo = np.zeros((50, 400, 3), np.uint8)
    classes = [f'a rather long class name {i}' for i in range(20)]
    label_map = np.resize(np.arange(20), (50, 400))
    palette = [[i, i, i] for i in range(20)]
    picture = draw_panels(photo, [Panel('prediction', label_map)], classes, palette)
    assert picture.size[0] == 800
    assert picture.size[1] >= 50 + LINE_HEIGHT * 6
