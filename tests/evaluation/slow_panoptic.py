"""Panoptic quality straight from its definition, mask by mask, and scenes to compute it for."""

from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    mask: np.ndarray
    label: int
    is_crowd: bool = False


def slow_counts(truth: list[Segment], predicted: list[Segment], label: int):
    """Return the sum of IoU, TP, FP and FN of one class; pixels of no true segment are void."""
    nothing = np.zeros_like((truth + predicted)[0].mask)
    known = sum((true.mask for true in truth), nothing)
    same = [true for true in truth if true.label == label]
    excuse = sum((true.mask for true in same if true.is_crowd), ~known)
    missed = [true.mask for true in same if not true.is_crowd]
    iou_sum = num_matches = num_wrong = 0
    for guess in (guess.mask for guess in predicted if guess.label == label):
        ious = [(true & guess).sum() / (true | guess & known).sum() for true in missed]
        if max(ious, default=0) > 0.5:
            iou_sum, num_matches = iou_sum + max(ious), num_matches + 1
            missed.pop(np.argmax(ious))
        else:
            num_wrong += (guess & excuse).sum() / guess.sum() <= 0.5
    return iou_sum, num_matches, num_wrong, len(missed)


def slow_quality(scenes, classes) -> tuple[float, float, float]:
    """Return PQ, SQ and RQ in percent over ``classes``; a scene is (truth, predicted)."""
    qualities = []
    for label in classes:
        iou_sum, tp, fp, fn = np.sum([slow_counts(*scene, label) for scene in scenes], axis=0)
        if tp + fp + fn > 0:
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
    return [s._replace(is_crowd=random.random() < 0.2) for s in truth], predicted


def rectangles(size, corners, labels) -> list[Segment]:
    """Make rectangles between two corners, later ones on top; leave out those without pixels."""
    owner = np.full(size, -1)
    for index, pair in enumerate(corners):
        (top, left), (bottom, right) = pair.min(0), pair.max(0)
        owner[top : bottom + 1, left : right + 1] = index
    segments = [Segment(owner == i, int(label)) for i, label in enumerate(labels)]
    return [segment for segment in segments if segment.mask.any()]
