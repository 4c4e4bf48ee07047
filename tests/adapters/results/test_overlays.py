import json

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image

from mmseg_m2f.adapters.data import InstanceDataset
from mmseg_m2f.adapters.results.drawing import LINE_HEIGHT, OPACITY
from mmseg_m2f.adapters.results.label_maps import SaveLabelMapsHook
from mmseg_m2f.adapters.results.overlays import DrawPredictionsHook, palette_of, predicted_panels
from tests.adapters.metrics.evaluation_scenes import Runner

CLASSES = ['wall', 'sky', 'tree']
PALETTE = [[255, 0, 0], [0, 0, 255], [0, 255, 0]]


class Dataset:
    def __init__(self, folder, classes=CLASSES, palette=PALETTE):
        self.metainfo = {'classes': classes, 'palette': palette} if classes else {}
        self.data_prefix = {'img_path': str(folder)}


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
    """Return a sample with class 2 predicted in the left half and class 0 in the right half."""
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


def test_images_show_the_truth_beside_the_prediction_if_there_is_any(photo, tmp_path):
    meta = {'dataset_meta': {'classes': CLASSES, 'palette': PALETTE}}
    for name, truth, classes, columns in (
        ('a', None, CLASSES, 2),
        ('b', torch.ones(1, 200, 400), CLASSES, 3),
        # Names and colors of the checkpoint serve a data set without.
        ('c', None, None, 2),
    ):
        hook = DrawPredictionsHook(str(tmp_path / name))
        hook.after_load_checkpoint(None, {'meta': meta})
        runner = Runner(Dataset(tmp_path / 'photos', classes=classes))
        hook.after_test_iter(runner, 0, outputs=[sample(photo, truth)])
        assert read(tmp_path / name / 'town/a.b.png').shape[1] == columns * 400


def detector_sample(photo, **metainfo):
    """Return a sample: left a thing of class 2, right stuff of class 0, and one weak instance."""
    element = BaseDataElement(metainfo={'img_path': str(photo), 'img_id': 7, **metainfo})
    encoded = torch.zeros(1, 200, 400, dtype=torch.int32)
    encoded[..., :200] = 2 + 1000
    element.pred_panoptic_seg = PixelData(sem_seg=encoded)
    masks = torch.zeros(2, 200, 400, dtype=torch.bool)
    masks[0, :, 200:] = True
    masks[1, :, :200] = True
    scores, labels = torch.tensor([0.2, 0.9]), torch.tensor([0, 2])
    element.pred_instances = InstanceData(masks=masks, scores=scores, labels=labels)
    element.pred_sem_seg = PixelData(sem_seg=encoded.long() % 1000)
    return element


def test_a_panel_for_each_kind_of_prediction(photo):
    semantic, instance, panoptic = predicted_panels(detector_sample(photo), 3, score_thr=0.3)
    assert [panel.title for panel in (semantic, panoptic)] == ['semantic', 'panoptic']
    assert '0.3' in instance.title
    assert semantic.segment_map is None
    for panel in (semantic, panoptic):
        assert panel.label_map[0, [0, 399]].tolist() == [2, 0]
    # The instance with a score of 0.2 is not shown.
    assert instance.label_map[0, [0, 399]].tolist() == [2, -1]
    assert panoptic.segment_map[0, 0] != panoptic.segment_map[0, 399]
    # Void is unlabeled, and so is an image without instances.
    element = detector_sample(photo)
    element.pred_panoptic_seg.sem_seg[..., :200] = 3
    _, instance, panoptic = predicted_panels(element, 3, score_thr=0.95)
    assert panoptic.label_map[0, [0, 399]].tolist() == [-1, 0]
    assert (instance.label_map == -1).all()


@pytest.mark.parametrize('palette', [None, 'random', PALETTE[:2]])
def test_colors_are_made_up_where_there_are_too_few(palette):
    assert len(palette_of({'classes': CLASSES, 'palette': palette})) == 3
    assert palette_of({'classes': CLASSES, 'palette': PALETTE}) is PALETTE


def colors_at(path, *columns):
    row = read(path)[LINE_HEIGHT + 50].astype(float)
    return [(row[column] - 200 * (1 - OPACITY)) / OPACITY for column in columns]


def test_panoptic_truth_comes_from_the_file_the_sample_names(photo, tmp_path):
    """The left half is segment 256 of class 1, the right one belongs to none."""
    png = np.zeros((200, 400, 3), np.uint8)
    png[:, :200, 1] = 1
    Image.fromarray(png).save(tmp_path / 'truth.png')
    segment = {'id': 256, 'label': 1, 'is_thing': True, 'is_crowd': False, 'area': 1}
    meta = {'seg_map_path': str(tmp_path / 'truth.png'), 'segments_info': [segment]}
    hook = DrawPredictionsHook(str(tmp_path / 'out'))
    runner = Runner(Dataset(tmp_path / 'photos'))
    hook.after_test_iter(runner, 0, outputs=[detector_sample(photo, **meta)])
    path = tmp_path / 'out/town/a.b.png'
    # Image, truth, semantic, instances, panoptic. JPEG may change the grey a little.
    assert read(path).shape[1] == 5 * 400
    left, right, thing, stuff = colors_at(path, 500, 700, 1700, 1900)
    for found, expected in ((left, 1), (thing, 2), (stuff, 0)):
        np.testing.assert_allclose(found, PALETTE[expected], atol=4)
    np.testing.assert_allclose(right, (0, 0, 0), atol=4)


def test_instance_truth_comes_from_the_data_set(photo, tmp_path):
    """A large instance of class 0 lies below a small one of class 1."""
    outlines = ([0, 0, 400, 0, 400, 200, 0, 200], [100, 0, 200, 0, 200, 200, 100, 200])
    annotations = [
        {'id': i, 'image_id': 7, 'category_id': 10 + i, 'segmentation': [outline], 'iscrowd': 0}
        for i, outline in enumerate(outlines)
    ]
    content = {
        'images': [
            {'id': 6, 'file_name': 'town/other.jpg', 'height': 9, 'width': 9},
            {'id': 7, 'file_name': 'town/a.b.jpg', 'height': 200, 'width': 400},
        ],
        'categories': [{'id': 10 + i, 'name': name} for i, name in enumerate(CLASSES)],
        'annotations': annotations,
    }
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    folder = tmp_path / 'photos'
    dataset = InstanceDataset(
        str(tmp_path / 'instances.json'),
        {'img': str(folder)},
        metainfo={'classes': CLASSES, 'palette': PALETTE},
        test_mode=True,
    )
    element = detector_sample(photo)
    del element.pred_panoptic_seg, element.pred_sem_seg
    hook = DrawPredictionsHook(str(tmp_path / 'out'), score_thr=0.1)
    hook.after_test_iter(Runner(dataset), 0, outputs=[element])
    path = tmp_path / 'out/town/a.b.png'
    assert read(path).shape[1] == 3 * 400
    below, on_top, left, right = colors_at(path, 450, 550, 900, 1100)
    for found, expected in ((below, 0), (on_top, 1), (left, 2), (right, 0)):
        np.testing.assert_allclose(found, PALETTE[expected], atol=4)
