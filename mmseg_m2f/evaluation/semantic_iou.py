"""Mean IoU of label maps, as mmseg's ``IoUMetric`` defines it."""

from typing import NamedTuple

import numpy as np

NO_CLASS = -1


class SemanticQuality(NamedTuple):
    """IoU and accuracy in [0, 1] per class ``(K,)``, NaN where undefined, and of all pixels."""

    iou: np.ndarray
    accuracy: np.ndarray
    pixel_accuracy: float


def class_areas(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels of each class in one image: ``(3, K)`` common, true and predicted ones.

    The results of several images are added. Pixels whose true label is `NO_CLASS` are left out.

    Args:
        truth: ``(H, W)`` true class indices, or `NO_CLASS`.
        predicted: ``(H, W)`` predicted class indices.
        num_classes: K.

    Raises:
        ValueError: the maps differ in size, or one holds a label that is no class.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f'the prediction is {predicted.shape} pixels (height, width), the ground truth '
            f'{truth.shape}'
        )
    is_labeled = truth != NO_CLASS
    truth, predicted = truth[is_labeled].astype(np.int64), predicted[is_labeled].astype(np.int64)
    for name, labels in (('ground truth', truth), ('prediction', predicted)):
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            wrong = np.unique(labels[(labels < 0) | (labels >= num_classes)])
            raise ValueError(
                f'the {name} holds labels {wrong[:8].tolist()}, the classes are 0 to '
                f'{num_classes - 1}'
            )
    common = truth[truth == predicted]
    return np.stack(
        [np.bincount(labels, minlength=num_classes) for labels in (common, truth, predicted)]
    )


def semantic_quality(areas: np.ndarray) -> SemanticQuality:
    """Compute the qualities from the sum of `class_areas`."""
    common, true, predicted = areas

    def ratio(denominator: np.ndarray) -> np.ndarray:
        undefined = np.full(len(common), np.nan)
        return np.divide(common, denominator, undefined, where=denominator > 0)

    pixel_accuracy = common.sum() / true.sum() if true.any() else 0.0
    return SemanticQuality(ratio(true + predicted - common), ratio(true), float(pixel_accuracy))


def mean_of_defined(per_class: np.ndarray) -> float:
    """Average the classes that are not NaN; 0 if all are."""
    defined = per_class[~np.isnan(per_class)]
    return float(defined.mean()) if len(defined) else 0.0
