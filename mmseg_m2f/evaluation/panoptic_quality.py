"""Panoptic quality (Kirillov et al., CVPR 2019).

A predicted and a true segment of the same class match if their IoU exceeds 1/2. Then no segment can
match twice. Per class, with the matched pairs (TP) and the unmatched segments (FP, FN)::

    PQ = sum of IoU / (TP + FP/2 + FN/2) = SQ * RQ,  SQ = sum of IoU / TP,  RQ = PQ / SQ
"""

from typing import NamedTuple

import numpy as np

from mmseg_m2f.evaluation.panoptic_map import AnnotatedSegments, Segments


class PanopticQuality(NamedTuple):
    """The three qualities in [0, 1] of each class ``(K,)``, the counts, and whether it occurs.

    A class occurs if it has a true or a predicted segment. Other classes have quality 0 and are
    left out of averages.
    """

    pq: np.ndarray
    sq: np.ndarray
    rq: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    occurs: np.ndarray


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

    true_index, _ = np.nonzero(matched)

    def per_class(labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(labels, weights, minlength=num_classes)

    return np.stack(
        [
            per_class(truth.labels[true_index], overlaps[matched] / union[matched]),
            per_class(truth.labels[true_index]),
            per_class(predicted.labels[wrong]),
            per_class(truth.labels[missed]),
        ]
    )


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


def panoptic_quality(statistics: np.ndarray) -> PanopticQuality:
    """Compute the qualities of all classes from the sum of `image_statistics`."""
    iou, tp, fp, fn = statistics
    weighted = tp + fp / 2 + fn / 2
    occurs = weighted > 0

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.divide(numerator, denominator, np.zeros(len(tp)), where=denominator > 0)

    return PanopticQuality(
        pq=ratio(iou, weighted),
        sq=ratio(iou, tp),
        rq=ratio(tp, weighted),
        tp=tp.astype(int),
        fp=fp.astype(int),
        fn=fn.astype(int),
        occurs=occurs,
    )


def averages(quality: PanopticQuality, chosen: np.ndarray) -> tuple[float, float, float]:
    """Average PQ, SQ and RQ over the ``chosen (K,)`` classes that occur; 0 if none does."""
    counted = quality.occurs & chosen
    if not counted.any():
        return 0.0, 0.0, 0.0
    pq, sq, rq = (float(per_class[counted].mean()) for per_class in quality[:3])
    return pq, sq, rq
