"""Colors for classes that bring none of their own: plain Python, the same in every run."""

import colorsys

# As a share of the circle of hues: no two of the first steps come near each other.
GOLDEN_ANGLE = 0.381966


def spread_colors(num_classes: int) -> list[tuple[int, int, int]]:
    """Make one color ``(red, green, blue)`` per class, in [0, 255]; neighbors differ much."""
    colors = [
        colorsys.hsv_to_rgb(index * GOLDEN_ANGLE % 1, 0.75, 0.95 - 0.3 * (index % 2))
        for index in range(num_classes)
    ]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors]


def voc_colors(num_classes: int) -> list[list[int]]:
    """Make one color ``[red, green, blue]`` per class, in [0, 255]; all are different.

    They are the colors of Pascal VOC without the first one, black.

    Source: the color map of the VOC development kit. The bits of the index, three by three, fill
    the three channels from their highest bit on.
    """
    return [[_channel(index, offset) for offset in range(3)] for index in range(1, num_classes + 1)]


def _channel(index: int, offset: int) -> int:
    return sum((index >> (3 * bit + offset) & 1) << (7 - bit) for bit in range(8))
