"""Panoptic quality straight from its definition, mask by mask."""

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
