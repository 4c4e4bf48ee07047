"""Pixel values of the panels: colors, shades, borders, legend."""

import numpy as np

from mmseg_m2f.adapters.results.drawing import (
    BORDER_COLOR,
    LINE_HEIGHT,
    OPACITY,
    SHADES,
    Panel,
    borders,
    draw_panels,
    panel_of_masks,
    shaded_colors,
)

CLASSES = ['wall', 'sky', 'tree']
PALETTE = [[255, 0, 0], [0, 0, 255], [0, 255, 0]]


def test_colors_are_the_palettes_and_ignored_pixels_dark():
    photo = np.full((100, 400, 3), 100, np.uint8)
    label_map = np.zeros((100, 400), np.int64)
    label_map[:, 100:200], label_map[:, 200:300] = 1, 255
    image = np.asarray(draw_panels(photo, [Panel('prediction', label_map)], CLASSES, PALETTE))
    row = image[LINE_HEIGHT + 50, 400:]
    photo_share = round(100 * (1 - OPACITY))
    for column, color in ((50, PALETTE[0]), (150, PALETTE[1]), (250, (0, 0, 0))):
        expected = np.array(color) * OPACITY + photo_share
        np.testing.assert_allclose(row[column], expected, atol=1)
    # The photo itself stays as it is, and the legend has the two classes that occur.
    assert (image[LINE_HEIGHT + 50, 200] == 100).all()
    legend = image[LINE_HEIGHT + 100 :].reshape(-1, 3)
    found = [(legend == color).all(1).any() for color in PALETTE]
    assert found == [True, True, False]


def test_a_long_legend_breaks_into_lines():
    photo = np.zeros((50, 400, 3), np.uint8)
    classes = [f'a rather long class name {i}' for i in range(20)]
    label_map = np.resize(np.arange(20), (50, 400))
    palette = [[i, i, i] for i in range(20)]
    image = draw_panels(photo, [Panel('prediction', label_map)], classes, palette)
    assert image.size[0] == 800
    assert image.size[1] >= 50 + LINE_HEIGHT * 6


def test_masks_lie_on_each_other_the_first_on_top():
    masks = np.zeros((2, 2, 4), bool)
    masks[0, :, 1:3] = True
    masks[1, 0] = True
    panel = panel_of_masks('instances', masks, np.array([7, 3]))
    assert panel.segment_map.tolist() == [[1, 0, 0, 1], [-1, 0, 0, -1]]
    assert panel.label_map.tolist() == [[3, 7, 7, 3], [-1, 7, 7, -1]]
    nothing = panel_of_masks('instances', masks[:0], np.zeros(0, np.int64))
    assert nothing.label_map.tolist() == [[-1] * 4] * 2


def test_the_segments_of_a_class_take_turns_in_shade():
    """Segments 4 and 9 are of class 0, 6 is of class 1, 0 of none."""
    segment_map = np.array([[0, 4, 6, 9]])
    label_map = np.array([[255, 0, 1, 0]])
    colors = shaded_colors(segment_map, label_map, [[100, 0, 200], [0, 0, 255]])
    lighter = [100 + SHADES[1] * 155, SHADES[1] * 255, 200 + SHADES[1] * 55]
    assert colors[0, :3].tolist() == [[0, 0, 0], [100, 0, 200], [0, 0, 255]]
    assert colors[0, 3].tolist() == np.rint(lighter).tolist()


def test_many_segments_of_a_class_have_six_different_shades():
    segment_map = np.arange(12)[None]
    colors = shaded_colors(segment_map, np.zeros_like(segment_map), [[90, 120, 150]])[0]
    assert len({tuple(color) for color in colors.tolist()}) == len(SHADES)
    assert (colors[:6] == colors[6:]).all()
    # Darker ones are darker in every channel.
    assert (colors[2] < colors[0]).all()


def test_borders_lie_where_the_right_or_the_lower_neighbor_differs():
    edge = borders(np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]]))
    assert edge.astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


def test_two_segments_of_a_class_are_told_apart_in_the_image():
    photo = np.full((100, 400, 3), 100, np.uint8)
    segment_map = np.ones((100, 400), np.int64)
    segment_map[:, 200:] = 2
    panel = Panel('panoptic', np.zeros_like(segment_map), segment_map)
    row = np.asarray(draw_panels(photo, [panel], CLASSES, PALETTE))[LINE_HEIGHT + 50, 400:]
    assert tuple(row[199]) == BORDER_COLOR
    shade = round(255 * SHADES[1])
    for column, color in ((100, PALETTE[0]), (300, (255, shade, shade))):
        expected = np.array(color) * OPACITY + 100 * (1 - OPACITY)
        np.testing.assert_allclose(row[column], expected, atol=1)
