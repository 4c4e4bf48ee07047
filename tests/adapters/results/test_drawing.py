"""Pixels of the drawn images. The photo is grey, 400 x 200; JPEG may change it a little."""

import json

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image

from mmseg_m2f.adapters.data import InstanceDataset
from mmseg_m2f.adapters.results import drawing
from tests.adapters.metrics.evaluation_scenes import runner_of

CLASSES = ['wall', 'sky', 'tree']
PALETTE = [[255, 0, 0], [0, 0, 255], [0, 255, 0]]
GREY = np.full((100, 400, 3), 100, np.uint8)


def row_of(panel, photo=GREY):
    """Return the middle row of the drawn panel, right of the photo."""
    image = np.asarray(drawing.draw_panels(photo, [panel], CLASSES, PALETTE))
    return image[drawing.LINE_HEIGHT + 50, 400:]


def blended(color, photo=100):
    return np.array(color) * drawing.OPACITY + photo * (1 - drawing.OPACITY)


def test_colors_are_the_palettes_and_ignored_pixels_dark():
    label_map = np.repeat([[0, 1, 255, 0]], 100, 0).repeat(100, 1)
    panel = drawing.Panel('prediction', label_map)
    row = row_of(panel)
    for column, color in ((50, PALETTE[0]), (150, PALETTE[1]), (250, (0, 0, 0))):
        np.testing.assert_allclose(row[column], blended(color), atol=1)
    # The photo itself stays as it is, and the legend has the two classes that occur.
    image = np.asarray(drawing.draw_panels(GREY, [panel], CLASSES, PALETTE))
    assert (image[drawing.LINE_HEIGHT :][:100, :400] == 100).all()
    legend = image[drawing.LINE_HEIGHT + 100 :].reshape(-1, 3)
    assert [(legend == color).all(1).any() for color in PALETTE] == [True, True, False]


def test_a_long_legend_breaks_into_lines():
    classes, palette = [f'a rather long class name {i}' for i in range(20)], [[9, 9, 9]] * 20
    panel = drawing.Panel('prediction', np.resize(np.arange(20), (50, 400)))
    image = drawing.draw_panels(GREY[:50], [panel], classes, palette)
    assert image.size[0] == 800
    assert image.size[1] >= 50 + drawing.LINE_HEIGHT * 6


def test_masks_lie_on_each_other_the_first_on_top():
    masks = np.zeros((2, 2, 4), bool)
    masks[0, :, 1:3], masks[1, 0] = True, True
    panel = drawing.panel_of_masks('instances', masks, np.array([7, 3]))
    assert panel.segment_map.tolist() == [[1, 0, 0, 1], [-1, 0, 0, -1]]
    assert panel.label_map.tolist() == [[3, 7, 7, 3], [-1, 7, 7, -1]]
    nothing = drawing.panel_of_masks('instances', masks[:0], np.zeros(0, np.int64))
    assert nothing.label_map.tolist() == [[-1] * 4] * 2


def test_the_segments_of_a_class_take_turns_in_six_shades():
    """Segments 4 and 9 are of class 0, 6 is of class 1, 0 of none."""
    shade = drawing.SHADES[1]
    colors = drawing.shaded_colors(
        np.array([[0, 4, 6, 9]]), np.array([[255, 0, 1, 0]]), [[100, 0, 200], [0, 0, 255]]
    )
    lighter = np.rint([100 + shade * 155, shade * 255, 200 + shade * 55]).tolist()
    assert colors[0].tolist() == [[0, 0, 0], [100, 0, 200], [0, 0, 255], lighter]
    segment_map = np.arange(12)[None]
    colors = drawing.shaded_colors(segment_map, np.zeros_like(segment_map), [[90, 120, 150]])[0]
    assert len(np.unique(colors, axis=0)) == 6
    assert (colors[:6] == colors[6:]).all()
    assert (colors[2] < colors[0]).all()  # darker in every channel


def test_borders_lie_where_the_right_or_the_lower_neighbor_differs():
    edge = drawing.borders(np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]]))
    assert edge.astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]
    segment_map = np.ones((100, 400), np.int64)
    segment_map[:, 200:] = 2
    row = row_of(drawing.Panel('panoptic', np.zeros_like(segment_map), segment_map))
    assert tuple(row[199]) == drawing.BORDER_COLOR
    shade = 255 * drawing.SHADES[1]
    np.testing.assert_allclose(row[100], blended(PALETTE[0]), atol=1)
    np.testing.assert_allclose(row[300], blended((255, shade, shade)), atol=1)


@pytest.mark.parametrize('palette', [None, 'random', PALETTE[:2]])
def test_colors_are_made_up_where_there_are_too_few(palette):
    assert len(drawing.palette_of({'classes': CLASSES, 'palette': palette})) == 3
    assert drawing.palette_of({'classes': CLASSES, 'palette': PALETTE}) is PALETTE


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photos/town/a.b.jpg'
    path.parent.mkdir(parents=True)
    Image.new('RGB', (400, 200), (200, 200, 200)).save(path)
    return path


class Dataset:
    def __init__(self, folder, classes=CLASSES):
        self.metainfo = {'classes': classes, 'palette': PALETTE} if classes else {}
        self.data_prefix = {'img_path': str(folder)}


def sample(photo, **metainfo):
    """Return a sample: left a thing of class 2, right stuff of class 0, and one weak instance."""
    element = BaseDataElement(metainfo={'img_path': str(photo), 'img_id': 7, **metainfo})
    encoded = torch.zeros(1, 200, 400, dtype=torch.int32)
    encoded[..., :200] = 2 + 1000
    right = encoded[0] == 0
    instances = {'masks': torch.stack([right, ~right]), 'scores': torch.tensor([0.2, 0.9])}
    element.pred_panoptic_seg = PixelData(sem_seg=encoded)
    element.pred_instances = InstanceData(labels=torch.tensor([0, 2]), **instances)
    element.pred_sem_seg = PixelData(sem_seg=encoded.long() % 1000)
    return element


def test_a_panel_for_each_kind_of_prediction(photo):
    element = sample(photo)
    semantic, instance, panoptic = drawing.predicted_panels(element.to_dict(), 3, score_thr=0.3)
    assert [panel.title for panel in (semantic, panoptic)] == ['semantic', 'panoptic']
    assert '0.3' in instance.title
    assert semantic.segment_map is None
    for panel in (semantic, panoptic):
        assert panel.label_map[0, [0, 399]].tolist() == [2, 0]
    # The instance with a score of 0.2 is not shown.
    assert instance.label_map[0, [0, 399]].tolist() == [2, -1]
    assert panoptic.segment_map[0, 0] != panoptic.segment_map[0, 399]
    # Void is unlabeled, and so is an image without instances.
    element.pred_panoptic_seg.sem_seg[..., :200] = 3
    _, instance, panoptic = drawing.predicted_panels(element.to_dict(), 3, score_thr=0.95)
    assert panoptic.label_map[0, [0, 399]].tolist() == [-1, 0]
    assert (instance.label_map == -1).all()


def drawn(photo, dataset, element, **settings):
    """Return the image that the hook writes."""
    out = photo.parents[2] / 'out'
    hook = drawing.DrawPredictionsHook(str(out), **settings)
    # Names and colors of the checkpoint serve a data set without.
    meta = {'classes': CLASSES, 'palette': PALETTE}
    hook.after_load_checkpoint(None, {'meta': {'dataset_meta': meta}})
    hook.after_test_iter(runner_of(dataset), 0, outputs=[element])
    with Image.open(out / 'town/a.b.png') as image:
        return np.asarray(image)


def assert_labels(image, labels):
    """Compare the middle row: column to the class whose color lies there, or None."""
    for column, label in labels.items():
        color = (0, 0, 0) if label is None else PALETTE[label]
        found = image[drawing.LINE_HEIGHT + 50, column]
        np.testing.assert_allclose(found, blended(color, 200), atol=3)


@pytest.mark.parametrize(
    ('has_truth', 'classes'), [(False, CLASSES), (True, CLASSES), (True, None)]
)
def test_a_semantic_truth_comes_with_the_sample(photo, has_truth, classes):
    element = sample(photo)
    # mmseg's samples, with its name of the map.
    element.pred_sem_seg = PixelData(data=element.pred_sem_seg.sem_seg)
    del element.pred_panoptic_seg, element.pred_instances
    if has_truth:
        element.gt_sem_seg = PixelData(data=torch.ones(1, 200, 400))
    image = drawn(photo, Dataset(photo.parents[1], classes), element)
    assert image.shape[1] == 400 * (2 + has_truth)
    assert_labels(image, {400: 1 if has_truth else 2, 400 * (1 + has_truth) + 300: 0})


def test_a_panoptic_truth_comes_from_the_file_the_sample_names(photo, tmp_path):
    """The left half is segment 256 of class 1, the right one belongs to none."""
    png = np.zeros((200, 400, 3), np.uint8)
    png[:, :200, 1] = 1
    Image.fromarray(png).save(tmp_path / 'truth.png')
    segment = {'id': 256, 'label': 1, 'is_thing': True, 'is_crowd': False, 'area': 1}
    files = {'seg_map_path': str(tmp_path / 'truth.png'), 'segments_info': [segment]}
    image = drawn(photo, Dataset(tmp_path / 'photos'), sample(photo, **files))
    # Image, truth, semantic, instances, panoptic.
    assert image.shape[1] == 5 * 400
    assert_labels(image, {500: 1, 700: None, 1700: 2, 1900: 0})


def test_an_instance_truth_comes_from_the_data_set(photo, tmp_path):
    """A large instance of class 0 lies below a small one of class 1."""
    outlines = ([0, 0, 400, 0, 400, 200, 0, 200], [100, 0, 200, 0, 200, 200, 100, 200])
    names = {6: 'town/other.jpg', 7: 'town/a.b.jpg'}
    content = {
        'images': [
            {'id': i, 'file_name': name, 'height': 200, 'width': 400} for i, name in names.items()
        ],
        'categories': [{'id': 10 + i, 'name': name} for i, name in enumerate(CLASSES)],
        'annotations': [
            {'id': i, 'image_id': 7, 'category_id': 10 + i, 'segmentation': [outline], 'iscrowd': 0}
            for i, outline in enumerate(outlines)
        ],
    }
    ann_file = tmp_path / 'instances.json'
    ann_file.write_text(json.dumps(content))
    meta, folders = {'classes': CLASSES, 'palette': PALETTE}, {'img': str(tmp_path / 'photos')}
    dataset = InstanceDataset(str(ann_file), folders, metainfo=meta, test_mode=True)
    element = sample(photo)
    del element.pred_panoptic_seg, element.pred_sem_seg
    image = drawn(photo, dataset, element, score_thr=0.1)
    assert image.shape[1] == 3 * 400
    assert_labels(image, {450: 0, 550: 1, 900: 2, 1100: 0})
