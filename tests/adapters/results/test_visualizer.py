"""The visualizer draws what mmdet's draws, and what it cannot."""

import numpy as np
import pytest
from mmengine.structures import PixelData

pytest.importorskip('mmdet')

from mmdet.structures import DetDataSample
from mmengine.registry import VISUALIZERS

CLASSES = ('a', 'b')
GREY = np.full((20, 30, 3), 128, np.uint8)


def drawn(name, field, values, palette):
    visualizer = VISUALIZERS.build({'type': name, 'name': f'{name} {field} {palette}'})
    visualizer.dataset_meta = {'classes': CLASSES, 'palette': palette}
    sample = DetDataSample()
    setattr(sample, field, PixelData(sem_seg=np.asarray(values)[None]))
    visualizer.add_datasample('image', GREY, sample, draw_gt=False)
    return visualizer.get_image()


# Half of the image is class 1 as stuff, or nothing is any segment: 2 is void.
HALF = np.repeat([[0, 1]], 20, 0).repeat(15, 1)
VOID = np.full((20, 30), 2)
COLORS = [(255, 0, 0), (0, 0, 255)]


@pytest.mark.filterwarnings(r'ignore:Warning. The (bbox|polygon) is out of bounds')
@pytest.mark.parametrize('field', ['pred_panoptic_seg', 'pred_sem_seg'])
def test_it_draws_what_mmdet_draws(field):
    ours = drawn('mmseg_m2f.Mask2FormerVisualizer', field, HALF, COLORS)
    assert (ours == drawn('mmdet.DetLocalVisualizer', field, HALF, COLORS)).all()
    assert (ours != GREY).any()


def test_a_panoptic_map_without_segments_leaves_the_image():
    field = 'pred_panoptic_seg'
    assert (drawn('mmseg_m2f.Mask2FormerVisualizer', field, VOID, COLORS) == GREY).all()


@pytest.mark.parametrize('palette', ['random', None])
def test_a_palette_may_be_a_name_or_missing(palette):
    image = drawn('mmseg_m2f.Mask2FormerVisualizer', 'pred_sem_seg', HALF, palette)
    left, right = image[1:4, 1:4].reshape(-1, 3), image[1:4, -4:-1].reshape(-1, 3)
    assert (left == left[0]).all()
    assert (left[0] != right[0]).any()
