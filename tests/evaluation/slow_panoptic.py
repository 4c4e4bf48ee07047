"""Panoptic quality straight from its definition, with loops over masks."""

from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    mask: np.ndarray
    label: int
    is_crowd: bool = False


def slow_counts(truth: list[Segment], predicted: list[Segment], label: int):
    """Return the sum of IoU, TP, FP and FN of one class in one image.

    ``truth`` and ``predicted`` are all segments of the image. Pixels of no true segment are void.
    """
    size = [segment.mask.shape for segment in truth + predicted][:1]
    void, crowd = np.ones(size[0], bool), np.zeros(size[0], bool)
    for true in truth:
        void &= ~true.mask
        if true.is_crowd and true.label == label:
            crowd |= true.mask
    wanted = [true.mask for true in truth if true.label == label and not true.is_crowd]
    guesses = [guess.mask for guess in predicted if guess.label == label]
    iou_sum, missed, left = 0.0, len(wanted), list(range(len(guesses)))
    for true in wanted:
        for index, guess in enumerate(guesses):
            visible = guess & ~void
            iou = (true & visible).sum() / (true | visible).sum()
            if iou > 0.5:
                iou_sum, missed = iou_sum + iou, missed - 1
                left.remove(index)
    fp = 0
    for index in left:
        excused = (guesses[index] & (void | crowd)).sum() / guesses[index].sum()
        fp += not excused > 0.5
    return iou_sum, len(wanted) - missed, fp, missed


def slow_quality(scenes, classes) -> tuple[float, float, float]:
    """Return PQ, SQ and RQ in percent over ``classes``; a scene is (truth, predicted)."""
    qualities = []
    for label in classes:
        iou_sum, tp, fp, fn = np.sum([slow_counts(*scene, label) for scene in scenes], axis=0)
        if tp + fp + fn == 0:
            continue
        recognition = tp / (tp + fp / 2 + fn / 2)
        segmentation = iou_sum / tp if tp else 0.0
        qualities.append((segmentation * recognition, segmentation, recognition))
    return tuple(100 * np.mean(qualities, axis=0)) if qualities else (0.0, 0.0, 0.0)


def random_scene(random: np.random.Generator, num_classes: int, size: tuple[int, int]):
    """Make overlapping rectangles with void and crowds; the predictions are moved copies."""
    corners = random.integers(0, size, (random.integers(1, 7), 2, 2))
    labels = random.integers(0, num_classes, len(corners))
    truth = rectangles(size, corners, labels)
    moved = np.clip(corners + random.integers(-1, 2, corners.shape), 0, np.array(size))
    changed = np.where(random.random(len(labels)) < 0.2, random.permutation(labels), labels)
    kept = random.random(len(labels)) < 0.9
    predicted = rectangles(size, moved[kept], changed[kept])
    crowds = random.random(len(truth)) < 0.2
    truth = [segment._replace(is_crowd=bool(c)) for segment, c in zip(truth, crowds, strict=True)]
    return truth, predicted


def rectangles(size, corners, labels) -> list[Segment]:
    """Make rectangles between two corners, later ones on top; leave out those without pixels."""
    owner = np.full(size, -1)
    for index, pair in enumerate(corners):
        (top, left), (bottom, right) = pair.min(0), pair.max(0)
        owner[top : bottom + 1, left : right + 1] = index
    segments = [Segment(owner == i, int(label)) for i, label in enumerate(labels)]
    return [segment for segment in segments if segment.mask.any()]
