"""Panoptic quality (Kirillov et al., CVPR 2019).

A predicted and a true segment of the same class match if their IoU exceeds 1/2. Then no segment can
match twice. Per class, with the matched pairs (TP) and the unmatched segments (FP, FN)::

    PQ = sum of IoU / (TP + FP/2 + FN/2) = SQ * RQ,  SQ = sum of IoU / TP,  RQ = PQ / SQ
"""

import numpy as np

from mmseg_m2f.evaluation.panoptic_map import AnnotatedSegments, Segments


def image_statistics(truth: AnnotatedSegments, predicted: Segments, num_classes: int) -> np.ndarray:
    """Compare the segments of one image: ``(4, K)`` sum of IoU, TP, FP and FN per class.

    The results of several images are added.

    * Predicted pixels on void do not count for the union.
    * A crowd is neither matched nor missed.
    * The area of a true segment is that of the map, unless the truth states another, as with
      panopticapi. Then a segment without a visible pixel (ADE20K has some, below its things) is
      missed.
    * An unmatched predicted segment is no error (FP) if more than half of it lies on void or on
      crowds of its class.

    Raises:
        ValueError: the two maps differ in size.
    """
    areas = _overlaps(truth, predicted)
    overlaps, on_void = areas[1:, 1:], areas[0, 1:]
    predicted_areas = areas[:, 1:].sum(0)
    truth_areas = areas[1:].sum(1) if truth.areas is None else truth.areas
    union = truth_areas[:, None] + predicted_areas - on_void - overlaps

    same_class = truth.labels[:, None] == predicted.labels
    is_crowd = truth.is_crowd[:, None]
    # IoU > 1/2, computed in whole numbers. An empty union has no overlap, so it never matches.
    matched = same_class & ~is_crowd & (2 * overlaps > union)
    ignored = on_void + (overlaps * (same_class & is_crowd)).sum(0)
    missed = ~matched.any(1) & ~truth.is_crowd & (truth_areas > 0)
    wrong = ~matched.any(0) & (2 * ignored <= predicted_areas) & (predicted_areas > 0)

    matched_labels = truth.labels[np.nonzero(matched)[0]]
    iou = np.bincount(matched_labels, overlaps[matched] / union[matched], num_classes)
    counted = matched_labels, predicted.labels[wrong], truth.labels[missed]
    return np.stack([iou, *(np.bincount(labels, minlength=num_classes) for labels in counted)])


def _overlaps(truth: AnnotatedSegments, predicted: Segments) -> np.ndarray:
    """Count the common pixels of all pairs ``(N_true + 1, N_predicted + 1)``; index 0 is void."""
    if truth.segment_map.shape != predicted.segment_map.shape:
        raise ValueError(
            f'the prediction is {predicted.segment_map.shape} pixels (height, width), the ground '
            f'truth {truth.segment_map.shape}'
        )
    shape = len(truth.labels) + 1, len(predicted.labels) + 1
    pairs = truth.segment_map * shape[1] + predicted.segment_map
    return np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def panoptic_quality(statistics: np.ndarray) -> np.ndarray:
    """Compute PQ, SQ and RQ ``(3, K)`` in [0, 1] from the sum of `image_statistics`.

    They are NaN for a class without a true or a predicted segment.
    """
    iou, tp, fp, fn = statistics
    weighted = tp + fp / 2 + fn / 2
    with np.errstate(invalid='ignore'):  # 0 / 0 is NaN
        pq, rq = iou / weighted, tp / weighted
    sq = np.where(weighted > 0, iou / np.maximum(tp, 1), np.nan)
    return np.stack([pq, sq, rq])
