import numpy as np
import pytest
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData

structures = pytest.importorskip('mmdet.structures')

COLORS = [(255, 0, 0), (0, 0, 255)]
GREY = np.full((20, 30, 3), 128, np.uint8)
HALF = np.repeat([[0, 1]], 20, 0).repeat(15, 1)


def drawn(field, values, palette, name='mmseg_m2f.Mask2FormerVisualizer'):
    visualizer = VISUALIZERS.build({'type': name, 'name': f'{name} {field} {palette}'})
    visualizer.dataset_meta = {'classes': ('a', 'b'), 'palette': palette}
    sample = structures.DetDataSample()
    setattr(sample, field, PixelData(sem_seg=values[None]))
    visualizer.add_datasample('image', GREY, sample, draw_gt=False)
    return visualizer.get_image()


@pytest.mark.filterwarnings(r'ignore:Warning. The (bbox|polygon) is out of bounds')
@pytest.mark.parametrize('field', ['pred_panoptic_seg', 'pred_sem_seg'])
def test_it_draws_what_mmdet_draws(field):
    ours = drawn(field, HALF, COLORS)
    assert (ours == drawn(field, HALF, COLORS, 'mmdet.DetLocalVisualizer')).all()
    assert (ours != GREY).any()


@pytest.mark.parametrize('palette', ['random', None])
def test_it_draws_what_mmdet_cannot(palette):
    assert (drawn('pred_panoptic_seg', np.full_like(HALF, 2), COLORS) == GREY).all()
    image = drawn('pred_sem_seg', HALF, palette)
    left, right = image[1:4, 1:4].reshape(-1, 3), image[1:4, -4:-1].reshape(-1, 3)
    assert (left == left[0]).all()
    assert (left[0] != right[0]).any()
