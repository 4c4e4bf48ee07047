"""Draw label maps and segments over an image: functions of arrays, without a framework."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.65
# Panels are resized to a width between these two, in pixels, so that titles and legend can be read.
PANEL_WIDTHS = (384, 1024)
LINE_HEIGHT = 26
FONT_SIZE = 16
UNLABELED_COLOR = (0, 0, 0)
BORDER_COLOR = (255, 255, 255)
# How far a segment's color moves to white (positive) or black (negative). The segments of one class
# take turns, and the first one has the color of the class.
SHADES = (0.0, 0.45, -0.4, 0.25, -0.2, 0.6)


class Panel(NamedTuple):
    """One prediction, or the ground truth, to draw.

    Args:
        title: the text above the panel.
        label_map: (H, W) class indices; other values mean no class.
        segment_map: (H, W) segment ids, if there are segments. The segments of one class then get
            different shades, and all get borders.
    """

    title: str
    label_map: np.ndarray
    segment_map: np.ndarray | None = None


def panel_of_masks(title: str, masks: np.ndarray, labels: np.ndarray) -> Panel:
    """Lay masks (N, H, W) over each other, the first on top; the rest stays unlabeled."""
    segment_map = np.full(masks.shape[1:], -1, np.int64)
    for index in range(len(masks) - 1, -1, -1):
        segment_map[masks[index]] = index
    # Index -1 takes the last value: pixels without a segment are unlabeled.
    return Panel(title, np.append(labels, -1)[segment_map], segment_map)


def draw_panels(
    image: np.ndarray,
    panels: Sequence[Panel],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Image.Image:
    """Draw the image, the panels to its right, and below them a legend of the classes that occur.

    Args:
        image: (H, W, 3) uint8, RGB.
        panels: what to draw over copies of the image. Pixels without a class get dark.
        classes: the names for the legend.
        palette: a color per class, RGB from 0 to 255.
    """
    width = int(np.clip(image.shape[1], *PANEL_WIDTHS))
    height = round(image.shape[0] * width / image.shape[1])
    panels = [_resized(panel, (width, height)) for panel in panels]
    base = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    tiles = [base, *(_painted(base, panel, palette) for panel in panels)]
    occurring = set().union(*(np.unique(panel.label_map).tolist() for panel in panels))
    used = sorted(occurring & set(range(len(classes))))
    legend = _legend([(classes[i], palette[i]) for i in used], width * len(tiles))
    canvas = Image.new('RGB', (width * len(tiles), LINE_HEIGHT + height + legend.height), 'white')
    draw = ImageDraw.Draw(canvas)
    titles = ['image', *(panel.title for panel in panels)]
    for left, tile, title in zip(range(0, canvas.width, width), tiles, titles, strict=True):
        draw.text((left + 6, 4), title, fill='black', font=_font())
        canvas.paste(tile, (left, LINE_HEIGHT))
    canvas.paste(legend, (0, LINE_HEIGHT + height))
    return canvas


def shaded_colors(
    segment_map: np.ndarray, label_map: np.ndarray, palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """Give each segment a shade of the color of its class; return ``(H, W, 3)`` uint8."""
    ids, first, inverse = np.unique(segment_map, return_index=True, return_inverse=True)
    labels = label_map.reshape(-1)[first]
    colors, seen = np.empty((len(ids), 3), np.uint8), dict.fromkeys(labels.tolist(), 0)
    for index, label in enumerate(labels.tolist()):
        if not 0 <= label < len(palette):
            colors[index] = UNLABELED_COLOR
            continue
        shade = SHADES[seen[label] % len(SHADES)]
        goal = 255 if shade > 0 else 0
        own = np.asarray(palette[label], float)
        colors[index] = np.rint(own + abs(shade) * (goal - own))
        seen[label] += 1
    # The inverse has the shape of the input in NumPy 2.0, and is flat in other versions.
    return colors[inverse.reshape(segment_map.shape)]


def borders(segment_map: np.ndarray) -> np.ndarray:
    """Find the pixels ``(H, W)`` whose right or lower neighbor belongs to another segment."""
    edge = np.zeros(segment_map.shape, bool)
    edge[:, :-1] |= segment_map[:, :-1] != segment_map[:, 1:]
    edge[:-1] |= segment_map[:-1] != segment_map[1:]
    return edge


def _resized(panel: Panel, size: tuple[int, int]) -> Panel:
    def nearest(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(values.astype(np.int32))
        return np.asarray(image.resize(size, Image.Resampling.NEAREST))

    segment_map = None if panel.segment_map is None else nearest(panel.segment_map)
    return Panel(panel.title, nearest(panel.label_map), segment_map)


def _painted(base: Image.Image, panel: Panel, palette: Sequence[Sequence[int]]) -> Image.Image:
    label_map, segment_map = panel.label_map, panel.segment_map
    if segment_map is None:
        colors = np.array([*palette, UNLABELED_COLOR], np.uint8)
        is_class = (label_map >= 0) & (label_map < len(palette))
        paint = colors[np.where(is_class, label_map, len(palette))]
        return Image.blend(base, Image.fromarray(paint), OPACITY)
    paint = shaded_colors(segment_map, label_map, palette)
    image = np.array(Image.blend(base, Image.fromarray(paint), OPACITY))
    image[borders(segment_map)] = BORDER_COLOR
    return Image.fromarray(image)


def _legend(entries: Sequence[tuple[str, Sequence[int]]], width: int) -> Image.Image:
    """Draw color fields with names, in as many lines as the width requires."""
    font, places = _font(), []
    left = line = 0
    for name, _ in entries:
        needed = LINE_HEIGHT + round(font.getlength(name)) + 18
        if left and left + needed > width:
            left, line = 0, line + 1
        places.append((left, line * LINE_HEIGHT))
        left += needed
    legend = Image.new('RGB', (width, (line + 1) * LINE_HEIGHT), 'white')
    draw = ImageDraw.Draw(legend)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x + 5, y + 6, x + 20, y + 21), fill=tuple(color), outline='black')
        draw.text((x + LINE_HEIGHT, y + 4), name, fill='black', font=font)
    return legend


def _font() -> Any:
    return ImageFont.load_default(FONT_SIZE)
