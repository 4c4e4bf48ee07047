import json
from types import SimpleNamespace

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
META = {'classes': CLASSES, 'palette': PALETTE}


def test_a_long_legend_breaks_into_lines():
    classes, palette = [f'a rather long class name {i}' for i in range(20)], [[9, 9, 9]] * 20
    panel = drawing.Panel('prediction', np.resize(np.arange(20), (50, 400)))
    image = drawing.draw_panels(np.zeros((50, 400, 3), np.uint8), [panel], classes, palette)
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


def test_the_segments_of_a_class_take_turns_in_six_shades_and_have_borders():
    """Segments 4 and 9 are of class 0, 6 is of class 1, 0 of none."""
    ids, labels, palette = [[0, 4, 6, 9]], [[255, 0, 1, 0]], [[100, 0, 200], [0, 0, 255]]
    colors = drawing.shaded_colors(np.array(ids), np.array(labels), palette)
    shade = drawing.SHADES[1]
    lighter = np.rint([100 + shade * 155, shade * 255, 200 + shade * 55]).tolist()
    assert colors[0].tolist() == [[0, 0, 0], [100, 0, 200], [0, 0, 255], lighter]
    ids = np.arange(12)[None]
    colors = drawing.shaded_colors(ids, np.zeros_like(ids), [[90, 120, 150]])[0]
    assert len(np.unique(colors, axis=0)) == 6
    assert (colors[:6] == colors[6:]).all()
    assert (colors[2] < colors[0]).all()  # darker in every channel
    edge = drawing.borders(np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]]))
    assert edge.astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize('palette', [None, 'random', PALETTE[:2]])
def test_colors_are_made_up_where_there_are_too_few(palette):
    assert len(drawing.palette_of({'classes': CLASSES, 'palette': palette})) == 3
    assert drawing.palette_of(META) is PALETTE


def dataset_in(folder, meta):
    return SimpleNamespace(metainfo=meta, data_prefix={'img_path': str(folder)})


@pytest.fixture
def photo(tmp_path):
    """A gray photo of 400 x 200 pixels."""
    path = tmp_path / 'photos/town/a.b.jpg'
    path.parent.mkdir(parents=True)
    Image.new('RGB', (400, 200), (200, 200, 200)).save(path)
    return path


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


def assert_drawn(tmp_path, dataset, element, labels, **settings):
    """Let the hook draw. Compare the middle row of panels: the class at a column, None, 'white'."""
    hook = drawing.DrawPredictionsHook(str(tmp_path / 'out'), **settings)
    hook.after_load_checkpoint(None, {'meta': {'dataset_meta': META}})
    hook.after_test_iter(runner_of(dataset), 0, outputs=[element])
    with Image.open(tmp_path / 'out/town/a.b.png') as file:
        image = np.asarray(file).astype(float)
    tiles = image[drawing.LINE_HEIGHT :][:200]
    np.testing.assert_allclose(tiles[:, :400], 200, atol=2)  # the photo stays, but for JPEG
    for column, label in labels.items():
        color = np.array((0, 0, 0) if label is None else PALETTE[label])
        expected = color * drawing.OPACITY + 200 * (1 - drawing.OPACITY)
        np.testing.assert_allclose(tiles[100, 400 + column], expected, atol=3)
    return image


@pytest.mark.parametrize('meta', [META, {}])
def test_a_semantic_truth_comes_with_the_sample(photo, tmp_path, meta):
    """Names and colors of the checkpoint serve a data set without. mmseg calls the maps data."""
    dataset, element = dataset_in(tmp_path / 'photos', meta), sample(photo)
    del element.pred_panoptic_seg, element.pred_instances
    element.pred_sem_seg = PixelData(data=element.pred_sem_seg.sem_seg)
    image = assert_drawn(tmp_path, dataset, element, {100: 2, 300: 0})
    assert image.shape[1] == 2 * 400
    # The legend has the two classes that occur.
    legend = image[drawing.LINE_HEIGHT + 200 :].reshape(-1, 3)
    assert [(legend == color).all(1).any() for color in PALETTE] == [True, False, True]
    element.gt_sem_seg = PixelData(
        data=torch.tensor([1, 255]).repeat_interleave(200).repeat(1, 200, 1)
    )
    image = assert_drawn(tmp_path, dataset, element, {100: 1, 300: None, 500: 2, 700: 0})
    assert image.shape[1] == 3 * 400


def test_a_panoptic_truth_comes_from_the_file_the_sample_names(photo, tmp_path):
    """The left half is segment 256 of class 1, the right one belongs to none."""
    png = np.zeros((200, 400, 3), np.uint8)
    png[:, :200, 1] = 1
    Image.fromarray(png).save(tmp_path / 'truth.png')
    segment = {'id': 256, 'label': 1, 'is_thing': True, 'is_crowd': False, 'area': 1}
    element = sample(photo, seg_map_path=str(tmp_path / 'truth.png'), segments_info=[segment])
    dataset = dataset_in(tmp_path / 'photos', META)
    # Truth, semantic, instances (one has a score of 0.2 only), panoptic.
    labels = {100: 1, 300: None, 500: 2, 700: 0, 900: 2, 1100: None, 1300: 2, 1500: 0}
    image = assert_drawn(tmp_path, dataset, element, labels)
    assert image.shape[1] == 5 * 400
    # Segments have borders.
    assert (image[drawing.LINE_HEIGHT + 100, [400 + 199, 4 * 400 + 199]] == 255).all()
    # Void is unlabeled, and so is an image without instances.
    element.pred_panoptic_seg.sem_seg[..., :200] = 3
    labels = {900: None, 1100: None, 1300: None, 1500: 0}
    assert_drawn(tmp_path, dataset, element, labels, score_thr=0.95)


def test_an_instance_truth_comes_from_the_data_set(photo, tmp_path):
    """A large instance of class 0 lies below a small one of class 1."""
    outlines = [[0, 0, 400, 0, 400, 200, 0, 200]], [[100, 0, 200, 0, 200, 200, 100, 200]]
    files, common = ((6, 'town/other.jpg'), (7, 'town/a.b.jpg')), {'image_id': 7, 'iscrowd': 0}
    content = {
        'images': [{'id': i, 'file_name': n, 'height': 200, 'width': 400} for i, n in files],
        'categories': [{'id': 10 + i, 'name': name} for i, name in enumerate(CLASSES)],
        'annotations': [
            {'id': i, 'category_id': 10 + i, 'segmentation': outline, **common}
            for i, outline in enumerate(outlines)
        ],
    }
    ann_file, folders = tmp_path / 'instances.json', {'img': str(tmp_path / 'photos')}
    ann_file.write_text(json.dumps(content))
    dataset = InstanceDataset(str(ann_file), folders, metainfo=META, test_mode=True)
    element = sample(photo)
    del element.pred_panoptic_seg, element.pred_sem_seg
    labels = {50: 0, 150: 1, 500: 2, 700: 0}
    image = assert_drawn(tmp_path, dataset, element, labels, score_thr=0.1)
    assert image.shape[1] == 3 * 400
